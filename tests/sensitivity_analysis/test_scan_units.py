# SPDX-License-Identifier: MIT
"""Channel groups are zeroed one at a time, and nothing else changes."""

import pytest
import torch
from torch import nn

import regrow
from regrow import channels
from regrow.sensitivity_analysis.scan import sensitivity
from regrow.sensitivity_analysis.scan_units import channel_units
from regrow.utils.errors import ConfigError

EXAMPLE = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def network():
    """Filters of rising norm: the least important channel is 0 in the first, 5 in the second."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    with torch.no_grad():
        rising = torch.tensor([1.0, 10, 100, 1000])
        net[0].weight.mul_(rising.view(4, 1, 1, 1))
        net[3].weight.mul_(rising.view(1, 4, 1, 1))  # columns count too
        net[3].weight.mul_(torch.tensor([1e5, 1e4, 1e3, 1e2, 1e1, 1]).view(6, 1, 1, 1))
        net[1].running_mean.uniform_(-1, 1)
        net[1].bias.uniform_(-1, 1)
    return net


def zeroed(net, group, gone):
    """By hand: the layer's rows and biases, its norm, and the columns of the layer after it."""
    net = {name: value.clone() for name, value in net.state_dict().items()}
    for channel in gone:
        if group == "0":
            for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
                net[name][channel] = 0
            net["3.weight"][:, channel] = 0
        else:
            net["3.weight"][channel], net["3.bias"][channel] = 0, 0
            net["6.weight"][:, 4 * channel : 4 * channel + 4] = 0
    return net


def states(net, sparsities, **more):
    """What the evaluation saw, and the result."""
    seen = []

    def evaluate(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return float(len(seen))

    options = {"by": "channels", "example_input": EXAMPLE} | more
    return seen, sensitivity(net, evaluate, sparsities, **options)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_one_group_at_a_time_is_zeroed_in_every_member():
    net = network()
    before = {name: value.numpy().tobytes() for name, value in net.state_dict().items()}
    seen, found = states(net, [0.5, 0.9])
    assert {name: v.numpy().tobytes() for name, v in net.state_dict().items()} == before
    assert [(row.name, row.size) for row in found.rows] == [("0", 4), ("3", 6)]
    expected = [
        ("0", []),
        ("0", [0, 1]),
        ("0", [0, 1, 2]),
        ("3", [5, 4, 3]),
        ("3", [5, 4, 3, 2, 1]),
    ]
    for shown, (group, gone) in zip(seen, expected, strict=True):
        assert same(shown, zeroed(net, group, gone))
    assert "the network's output" in found.excluded["6"]


def test_zeroed_group_computes_what_a_cut_network_does():
    """The cut is another piece of code; the excluded layers keep their channels."""
    outputs = []

    def evaluate(model):
        outputs.append(model(EXAMPLE))
        return 1.0

    sensitivity(network(), evaluate, [0.5], by="channels", example_input=EXAMPLE, include=["0"])
    small = network()
    channels.prune(small, EXAMPLE, 0.5, exclude=["3"], round_to=1)
    assert small[0].out_channels == 2
    torch.testing.assert_close(outputs[1], small.eval()(EXAMPLE).detach())


def test_shares_of_parameters_and_macs_by_hand():
    _, found = states(network(), [0.5])
    params = 36 + 4 + 8 + 216 + 6 + 72 + 3
    macs = {"0.weight": 36 * 16, "3.weight": 216 * 4, "6.weight": 72}
    first, second = found.rows
    assert first.weights == 36 + 4 + 8 + 216
    assert second.weights == 216 + 6 + 72
    assert first.params == first.weights / params
    assert first.macs == (macs["0.weight"] + macs["3.weight"]) / sum(macs.values())
    assert second.macs == (macs["3.weight"] + macs["6.weight"]) / sum(macs.values())


def test_masked_channels_count_as_removed_and_come_first():
    net = network()
    pruner = regrow.ChannelPruner(net, EXAMPLE, keep_removed=False)
    with torch.no_grad():
        net[0].weight[3] *= 1e-9  # least important now, so it is what is masked
        net[3].weight[:, 3] *= 1e-9
        net[1].weight[3] *= 1e-9
        net[1].bias[3] *= 1e-9
    pruner.prune_to(0.1)
    assert pruner.removed["0"].tolist() == [3]
    seen, found = states(net, [0.25, 0.5], masks=pruner.masks)
    first = found.rows[0]
    assert first.sparsity == 0.25
    assert first.accuracy[0.25] == found.accuracy
    assert same(seen[1], zeroed(net, "0", [3, 0]))

    def rising(group, tensors):  # the masked one is said to be the most important
        return torch.arange(group.size).double()

    seen, _ = states(net, [0.5], masks=pruner.masks, criterion=rising, include=["0"])
    assert same(seen[1], zeroed(net, "0", [3, 0]))


def test_masks_of_weights_alone_remove_no_channel():
    """Its bias would still be added."""
    net = network()
    masks = {"0.weight": torch.ones(4, 1, 3, 3, dtype=torch.bool)}
    masks["0.weight"][0] = False
    with torch.no_grad():
        net[0].weight[0] = 0
    units, _ = channel_units(net, example_input=EXAMPLE, masks=masks)
    assert [unit.n_pruned for unit in units] == [0, 0]


def test_groups_can_be_excluded_and_ranked_by_another_criterion():
    _, found = states(network(), [0.5], exclude=["3"])
    assert [row.name for row in found.rows] == ["0"]
    assert found.excluded["3"] == "3.weight is excluded or not included"
    with pytest.raises(ConfigError, match="criterion must be one of"):
        states(network(), [0.5], criterion="magnitude")
    seen, _ = states(
        network(), [0.25], criterion=lambda group, _: -torch.arange(group.size).double()
    )
    assert same(seen[1], zeroed(network(), "0", [3]))
