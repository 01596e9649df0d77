# SPDX-License-Identifier: MIT
"""Zeros that other tools wrote: counted, and taken as masks."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import regrow
from regrow import ConfigError, Masks, Pruner, StateError
from regrow.pruning.config import PruningConfig


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def pruned_by_torch(amount=0.75):
    """A network that torch.nn.utils.prune made sparse, for good."""
    net = network()
    pairs = [(net[0], "weight"), (net[3], "weight")]
    torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=amount)
    for module, name in pairs:
        torch_prune.remove(module, name)
    return net


def zeros_of(net):
    """Counted in NumPy: zeros and size of the two weights."""
    values = [net[i].weight.detach().numpy() for i in (0, 3)]
    return sum(int((v == 0).sum()) for v in values), sum(v.size for v in values)


def test_sparsity_counts_zeros_of_an_unmasked_model():
    net = pruned_by_torch()
    zeros, total = zeros_of(net)
    assert regrow.sparsity(net) == zeros / total == 0.75
    assert regrow.sparsity(network()) == 0
    first = net[0].weight.detach().numpy()
    assert regrow.sparsity(net, exclude=["@last"]) == (first == 0).mean()
    assert regrow.sparsity(net, include=["0"]) == (first == 0).mean()


def test_masks_from_zeros_keep_what_is_not_zero():
    net = pruned_by_torch()
    with torch.no_grad():
        net[0].weight[0, 0] = -0.0
        net[0].weight[0, 1] = float("nan")
    masks = Masks.from_zeros(net)
    assert [*masks] == ["0.weight", "3.weight"]
    for name, mask in masks.items():
        expected = net.get_parameter(name).detach().numpy() != 0
        assert np.array_equal(mask.numpy(), expected)
    assert [*Masks.from_zeros(net, exclude=["0"])] == ["3.weight"]


def test_masks_from_zeros_works_on_a_compiled_model():
    net = pruned_by_torch()
    masks = Masks.from_zeros(torch.compile(net))
    assert masks.digest() == Masks.from_zeros(net).digest()


def test_enforce_keeps_the_zeros_of_another_tool():
    net = pruned_by_torch()
    gone = net[0].weight.detach() == 0
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with regrow.enforce(net, Masks.from_zeros(net), sgd):
        for _ in range(3):
            net(torch.randn(8, 8)).square().sum().backward()
            sgd.step()
    assert np.array_equal(net[0].weight.detach().numpy() == 0, gone.numpy())


def test_pruner_takes_zeros_as_masks_and_prunes_further():
    net = pruned_by_torch()
    before = {i: net[i].weight.detach().clone() for i in (0, 3)}
    pruner = Pruner(net, from_zeros=True)
    assert pruner.sparsity == pruner.target == 0.75
    pruner.prune_to(0.9)
    assert zeros_of(net)[0] == round(0.9 * zeros_of(net)[1])
    for i, old in before.items():
        assert not net[i].weight[old == 0].any()


@pytest.mark.parametrize("keep", [True, "moments"])
def test_unprune_restores_only_weights_the_pruner_removed(keep):
    net = pruned_by_torch()
    before = net[0].weight.detach().clone()
    adam = torch.optim.Adam(net.parameters())
    net(torch.randn(8, 8)).square().sum().backward()
    pruner = Pruner(net, keep_removed=keep, from_zeros=True)
    pruner.prune_to(0.9, [adam])
    pruner.unprune(optimizers=[adam])
    assert torch.equal(net[0].weight, before)


def test_a_saved_pruner_loads_into_one_that_also_takes_zeros():
    pruner = Pruner(pruned_by_torch(), keep_removed=True, from_zeros=True)
    pruner.prune_to(0.9)
    other = Pruner(pruned_by_torch(), keep_removed=True, from_zeros=True)
    other.load_state_dict(pruner.state_dict())
    assert other.masks.digest() == pruner.masks.digest()
    assert other.history == pruner.history


def test_negative_zeros_become_positive():
    net = pruned_by_torch()
    with torch.no_grad():
        net[0].weight.masked_fill_(net[0].weight == 0, -0.0)
    Pruner(net, from_zeros=True)
    assert not bool(net[0].weight[net[0].weight == 0].signbit().any())


def test_layer_of_zeros_only_raises():
    """It would never train: zeros of an initialisation, or of a layer that was pruned away."""
    net = pruned_by_torch()
    nn.init.zeros_(net[3].weight)
    with pytest.raises(ConfigError, match=r"3\.weight.*exclude=\['3\.weight'\]"):
        Pruner(net, from_zeros=True)
    assert Pruner(net, PruningConfig(exclude=["3.weight"]), from_zeros=True).sparsity > 0


def test_from_zeros_must_be_a_bool():
    with pytest.raises(ConfigError, match="from_zeros must be True or False, got 'yes'"):
        Pruner(network(), from_zeros="yes")


def two_four(net, extra=()):
    with torch.no_grad():
        groups = net[0].weight.view(-1, 4)
        groups.scatter_(1, groups.abs().argsort(1)[:, :2], 0.0)
        for row in extra:
            groups[row] = 0.0
    return net


def test_two_of_four_takes_complete_groups_only():
    """By hand: half of the 128 weights; a third zero of a group is no mask, its group is done."""
    method = PruningConfig(granularity="2:4", exclude=["@last"])
    pruner = Pruner(two_four(network()), method, from_zeros=True)
    assert pruner.pruned == 64
    net = two_four(network())
    with torch.no_grad():
        net[0].weight.view(-1, 4)[5] = torch.tensor([0.0, 0.0, 0.0, 1.0])
        net[0].weight.view(-1, 4)[6] = torch.tensor([0.0, 1.0, 1.0, 1.0])
    pruner = Pruner(net, method, from_zeros=True)
    assert pruner.pruned == 62
    kept = pruner.masks["0.weight"].view(-1, 4)
    assert set(kept.sum(1).tolist()) == {2, 4}
    assert kept[6].all()
    pruner.prune_to(0.5)
    assert pruner.pruned == 64


def test_blocks_take_whole_blocks_only():
    net = network()
    with torch.no_grad():
        net[0].weight[:4, :4] = 0.0
        net[0].weight[4:8, :2] = 0.0
    pruner = Pruner(net, PruningConfig(granularity="block:4x4"), from_zeros=True)
    assert pruner.pruned == 16
    assert not pruner.masks["0.weight"][:4, :4].any()


def test_zeros_in_a_plain_loop_cause_a_warning():
    net = pruned_by_torch()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    zeros, total = zeros_of(net)
    with (
        pytest.warns(UserWarning, match=f"{zeros} of {total} prunable weights.*from_zeros=True"),
        Pruner(net).hook(sgd),
    ):
        pass


@pytest.mark.filterwarnings("error")
def test_zeros_made_by_the_pruner_cause_no_warning():
    net = pruned_by_torch()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    with Pruner(net, from_zeros=True).hook(sgd):
        pass
    net = network()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(net)
    pruner.prune_to(0.8)
    with pruner.hook(sgd):
        pass
    pruner.regrow(0.5, init="zero")
    zeros, total = zeros_of(net)
    assert zeros - pruner.pruned > 0.01 * total  # so many would be warned of, had it not made them
    with pruner.hook(sgd):
        pass


def test_sparsity_of_a_model_under_torch_prune_raises():
    net = network()
    torch_prune.l1_unstructured(net[0], "weight", 0.5)
    with pytest.raises(StateError, match=r"torch\.nn\.utils\.prune\.remove"):
        regrow.sparsity(net)
