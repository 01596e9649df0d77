# SPDX-License-Identifier: MIT
"""One update of sparse training, against NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regrow.masks.distributions import erk_densities
from regrow.profiling.metrics import MaskOverlap
from regrow.pruning.config import PruningConfig
from regrow.pruning.drop_and_grow import draw_masks, drop_and_grow, update_gradient_momentum
from regrow.pruning.initializers import INITIALIZERS
from regrow.pruning.pruner import Pruner
from regrow.schedules.drop_fraction import drop_fraction_at
from regrow.utils.errors import ConfigError, StateError

SHAPES = [(10, 6), (4, 10)]
NAMES = ["0.weight", "2.weight"]


def network(seed=0, make=None):
    """A sparse network with dense gradients, its pruner and an optimizer with moments."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
    pruner = Pruner(net, PruningConfig(distribution="uniform", seed=seed), keep_removed=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    gradients(net)
    optimizer.step()
    pruner.remember_original()
    draw_masks(pruner, 0.5, [optimizer])
    gradients(net)
    return net, pruner, optimizer


def gradients(net):
    net.zero_grad()
    net(torch.randn(8, 6)).square().sum().backward()


def kept(pruner):
    return {name: mask.clone() for name, mask in pruner.masks.items()}


def by_hand(weight, mask, growth, share):
    """(survivors, grown) of one layer, by stable sorting: of equal ones the first go."""
    weight, mask, growth = (np.asarray(t).ravel() for t in (weight, mask, growth))
    live = np.flatnonzero(mask)
    count = round(share * len(live))
    dropped = live[np.argsort(np.abs(weight[live]), kind="stable")[:count]]
    survivors = mask.astype(bool).copy()
    survivors[dropped] = False
    free = np.flatnonzero(~survivors)
    grown = np.zeros(len(mask), bool)
    grown[free[np.argsort(growth[free], kind="stable")[len(free) - count :]]] = True
    return survivors, grown


@given(data=st.data(), size=st.integers(2, 24), share=st.floats(0, 0.99))
def test_update_equals_a_computation_in_numpy(data, size, share):
    few = st.lists(st.integers(-3, 3), min_size=size, max_size=size)  # few values, many ties
    weight = torch.tensor(data.draw(few), dtype=torch.float32)
    gradient = torch.tensor(data.draw(few), dtype=torch.float32)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    layer = nn.Linear(size, 1, bias=False)
    layer.weight.data = weight.view(1, -1)
    pruner = Pruner(layer)
    pruner.set_masks({"weight": mask.view(1, -1)})
    layer.weight.grad = gradient.view(1, -1).clone()
    drop_and_grow(pruner, share)
    survivors, grown = by_hand(weight, mask, gradient.abs(), share)
    assert pruner.masks["weight"].numpy().ravel().tolist() == (survivors | grown).tolist()
    stays = mask.numpy() & (survivors | grown)
    expected = np.where(stays, weight.numpy(), 0)
    assert layer.weight.detach().numpy().ravel().tolist() == expected.tolist()
    assert not (layer.weight[0].signbit() & ~torch.from_numpy(stays)).any()


@pytest.mark.parametrize("levels", [0, 2, 40])
@pytest.mark.parametrize("grow", ["gradient", "momentum"])
def test_update_of_large_layers_equals_a_computation_in_numpy(grow, levels):
    """Here a sample tells where to look; with few levels of gradients it cannot."""
    layer = nn.Linear(200, 150, bias=False)
    pruner = Pruner(layer)
    draw_masks(pruner, 0.9)
    layer.weight.grad = torch.randn(150, 200, generator=torch.Generator().manual_seed(levels))
    if levels:
        layer.weight.grad = (layer.weight.grad * levels).round() / levels
    pruner.state.momenta["weight"] = layer.weight.grad.clone()
    weight, mask = layer.weight.detach().clone(), kept(pruner)["weight"]
    survivors, grown = by_hand(weight, mask, layer.weight.grad.abs(), 0.3)
    drop_and_grow(pruner, 0.3, grow=grow)
    assert pruner.masks["weight"].numpy().ravel().tolist() == (survivors | grown).tolist()
    layer.weight.grad[7, 7] = pruner.state.momenta["weight"][7, 7] = float("nan")
    pruner.set_masks({"weight": pruner.masks["weight"].index_fill(0, torch.tensor(7), False)})
    with pytest.raises(StateError, match="NaN"):
        drop_and_grow(pruner, 0.3, grow=grow)


def test_dropped_weight_that_grows_at_once_is_unchanged():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0, 0.0, 0.0]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[layer.weight]["momentum_buffer"] = torch.full((1, 4), 7.0)
    pruner = Pruner(layer)
    pruner.set_masks({"weight": torch.tensor([[True, True, False, False]])})
    layer.weight.grad = torch.tensor([[9.0, 0.0, 1.0, 5.0]])
    entry = drop_and_grow(pruner, 0.5, init="he", optimizers=[optimizer])
    assert layer.weight.tolist() == [[1.0, 2.0, 0.0, 0.0]]
    assert (entry["moved"], entry["overlap"]) == (0, 1.0)
    moments = optimizer.state[layer.weight]["momentum_buffer"]
    assert moments.tolist() == [[7.0, 7.0, 0.0, 0.0]]


@pytest.mark.parametrize("grow", ["gradient", "random", "momentum"])
@pytest.mark.parametrize("init", sorted({*INITIALIZERS} - {"orthogonal"}))
def test_counts_are_constant_and_only_moved_weights_change(grow, init):
    net, pruner, optimizer = network()
    counts = {name: int(mask.sum()) for name, mask in pruner.masks.items()}
    for share in (0.5, 0.3, 0.9, 0.0):
        optimizer.step()  # dense: its moments at pruned places must go, too
        pruner.enforcer.weights()
        gradients(net)
        update_gradient_momentum(pruner)
        before = kept(pruner)
        values = {name: p.detach().clone() for name, p in net.named_parameters()}
        dense = {name: net.get_parameter(name).grad.clone() for name in NAMES}
        drop_and_grow(pruner, share, grow=grow, init=init, optimizers=[optimizer])
        after = pruner.masks
        assert {name: int(mask.sum()) for name, mask in after.items()} == counts
        assert all(torch.equal(net[i].bias, values[f"{i}.bias"]) for i in (0, 2))
        for name in NAMES:
            weight, stay = net.get_parameter(name), before[name] & after[name]
            new = after[name] & ~before[name]
            assert torch.equal(weight[stay], values[name][stay])
            assert not weight[~after[name]].view(torch.int32).any()
            assert weight[new].all() or init in ("zero", "removed")
            assert torch.equal(weight.grad, dense[name].where(after[name], 0.0))
            for key in ("exp_avg", "exp_avg_sq"):
                assert not optimizer.state[weight][key][~stay].any()
                assert optimizer.state[weight][key][stay].any()
        gradients(net)


def test_grown_values_are_those_of_the_initialiser():
    net, pruner, _ = network()
    first, before = pruner.state.originals[NAMES[0]], kept(pruner)[NAMES[0]]
    drop_and_grow(pruner, 0.5, init="original")
    new = pruner.masks[NAMES[0]] & ~before
    assert new.any()
    assert torch.equal(net[0].weight[new], first[new])
    dropped = before & ~pruner.masks[NAMES[0]]
    gradients(net)
    gone = first.where(dropped, 0.0)
    drop_and_grow(pruner, 0.5, init="removed", grow=lambda target, *_: target.parameter.grad.abs())
    back = dropped & pruner.masks[NAMES[0]]
    assert torch.equal(net[0].weight[back], gone[back])


def test_drop_fraction_follows_a_cosine():
    shares = [drop_fraction_at(step, 200, 0.4) for step in range(0, 301, 50)]
    expected = [0.4 * math.cos(math.pi * step / 400) ** 2 for step in range(0, 201, 50)]
    assert shares == pytest.approx([*expected, 0, 0], abs=1e-12)  # cos^2(x / 2) = (1 + cos x) / 2


def test_random_growth_and_drop_depend_only_on_seed_event_and_name():
    def masks(seed, events):
        _, pruner, _ = network()
        pruner.state.seed = seed
        for _ in range(events):
            torch.rand(3)
            drop_and_grow(pruner, 0.5, drop="random", grow="random")
        return pruner

    assert masks(1, 3).masks.digest() == masks(1, 3).masks.digest()
    assert masks(1, 3).masks.digest() != masks(2, 3).masks.digest()
    assert masks(1, 3).masks.digest() != masks(1, 4).masks.digest()
    # places that are dropped by lot have the same chance to grow as others
    moved = [drop_and_grow(masks(seed, 0), 0.5, drop="random", grow="random")["moved"]
             for seed in range(40)]  # fmt: skip
    # of 50 kept ones 25 go; 25 grow among 75 empty places, two thirds of which are new
    assert 25 * 2 / 3 - 2 < sum(moved) / len(moved) < 25 * 2 / 3 + 2


def test_gradient_momentum_is_the_running_mean():
    net, pruner, optimizer = network()
    expected = {name: np.zeros(shape) for name, shape in zip(NAMES, SHAPES, strict=True)}
    for _ in range(4):
        gradients(net)
        update_gradient_momentum(pruner, optimizer)
        for name in NAMES:
            grad = net.get_parameter(name).grad.double().numpy()
            expected[name] = 0.9 * expected[name] + 0.1 * grad
    for name in NAMES:
        np.testing.assert_allclose(pruner.state.momenta[name], expected[name], rtol=1e-4, atol=1e-6)
    before = kept(pruner)
    values = {name: net.get_parameter(name).detach().clone() for name in NAMES}
    means = {name: mean.abs() for name, mean in pruner.state.momenta.items()}
    drop_and_grow(pruner, 0.4, grow="momentum")
    for name in NAMES:
        survivors, grown = by_hand(values[name], before[name], means[name], 0.4)
        assert pruner.masks[name].numpy().ravel().tolist() == (survivors | grown).tolist()


def test_gradient_momentum_skips_parameters_of_other_optimizers():
    net, pruner, _ = network()
    update_gradient_momentum(pruner, torch.optim.SGD(net[0].parameters(), lr=0.1))
    assert [*pruner.state.momenta] == NAMES[:1]


def test_any_criterion_can_choose_what_to_drop():
    net, pruner, _ = network()
    before, weight, grad = kept(pruner), net[0].weight.detach().clone(), net[0].weight.grad.clone()
    drop_and_grow(pruner, 0.4, drop="taylor")
    survivors, grown = by_hand(weight * grad, before[NAMES[0]], grad.abs(), 0.4)
    assert pruner.masks[NAMES[0]].numpy().ravel().tolist() == (survivors | grown).tolist()


def test_initial_masks_have_the_layer_densities():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(60, 50), nn.Linear(50, 10))
    shapes = [(50, 60), (10, 50)]
    for seed in (0, 1):
        pruner = Pruner(net, PruningConfig(distribution="erk", seed=seed))
        entry = draw_masks(pruner, 0.8)
        assert pruner.pruned == 2800 == entry["pruned"]
        for density, expected in zip(
            pruner.densities.values(), erk_densities(shapes, 0.8), strict=True
        ):
            assert density == pytest.approx(expected, abs=1 / 500)
        mask = pruner.masks["0.weight"]
        # by lot: rows and columns alike, within four standard deviations
        for part in (mask[:25], mask[25:], mask[:, :30], mask[:, 30:]):
            assert float(part.float().mean()) == pytest.approx(float(mask.float().mean()), abs=0.04)
        assert pruner.target == 0.8
        pruner.prune_to(0.9)


def test_history_entry_has_overlap_and_moved_count():
    _, pruner, _ = network()
    before = pruner.masks
    entry = drop_and_grow(pruner, 0.5)
    overlap = MaskOverlap()
    overlap.update(before, pruner.masks)
    assert entry["overlap"] == pytest.approx(float(overlap.compute()))
    assert entry["moved"] == sum(int((~before[n] & pruner.masks[n]).sum()) for n in NAMES)
    assert (entry["kind"], entry["share"]) == ("drop_and_grow", 0.5)
    assert entry["before"] == entry["after"] == 0.5


def test_dense_layers_stay_dense_and_need_no_gradient():
    net, pruner, _ = network()
    ones = torch.ones(SHAPES[1], dtype=torch.bool)
    pruner.set_masks({NAMES[0]: pruner.masks[NAMES[0]], NAMES[1]: ones})
    net[2].weight.grad = None
    drop_and_grow(pruner, 0.5)
    assert pruner.masks[NAMES[1]].all()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"grow": "gradients"}, ConfigError, "gradient, momentum, random"),
        ({"grow": "removed"}, ConfigError, "gradient, momentum, random"),
        ({"grow": "momentum"}, StateError, "0.weight"),
        ({"drop": "size"}, ConfigError, "magnitude"),
        ({"init": "one"}, ConfigError, "zero"),
        ({"init": "orthogonal"}, StateError, "whole filters"),
        ({"grow": "gradient", "lost": 2}, StateError, "2.weight has no gradient"),
    ],
)
def test_failed_update_changes_nothing(settings, error, words):
    net, pruner, _ = network()
    if "lost" in settings:
        net[settings.pop("lost")].weight.grad = None
    before, values = kept(pruner), [p.detach().clone() for p in net.parameters()]
    with pytest.raises(error, match=words):
        drop_and_grow(pruner, 0.5, **settings)
    assert all(torch.equal(mask, before[name]) for name, mask in pruner.masks.items())
    assert all(torch.equal(p, v) for p, v in zip(net.parameters(), values, strict=True))
    assert len(pruner.history) == 1
