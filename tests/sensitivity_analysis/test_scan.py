# SPDX-License-Identifier: MIT
"""Exactly one layer is pruned while it is evaluated, and the model is restored afterwards."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regrow
from regrow.sensitivity_analysis.scan import sensitivity
from regrow.utils.errors import ConfigError, StateError


def network():
    """Two convolutions with a norm, and a linear layer; with a minus zero to be kept."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = -0.0
        net[1].running_mean.uniform_(-1, 1)
    return net


WEIGHTS = {"0.weight": 36, "4.weight": 216, "7.weight": 72}


def bits(net):
    return {name: value.numpy().tobytes() for name, value in net.state_dict().items()}


class Watch:
    """An evaluation that keeps a copy of every model it is shown."""

    def __init__(self, fail_at=None):
        self.seen, self.fail_at = [], fail_at

    def __call__(self, net):
        assert not any(module.training for module in net.modules())
        assert not torch.is_grad_enabled()
        net(torch.randn(5, 1, 6, 6))  # would move a norm's statistics in training mode
        if len(self.seen) == self.fail_at:
            raise OSError("the data is gone")
        self.seen.append({name: value.clone() for name, value in net.state_dict().items()})
        return 1 / (1 + len(self.seen))


def lowest(values, count):
    """The places of the smallest |w|, in flat order where equal: by NumPy."""
    order = np.argsort(np.abs(values.reshape(-1)), kind="stable")
    zero = np.zeros(values.size, dtype=bool)
    zero[order[:count]] = True
    return zero.reshape(values.shape)


def test_each_layer_alone_is_pruned_by_magnitude():
    net, watch = network(), Watch()
    before, whole = bits(net), {k: v.clone() for k, v in net.state_dict().items()}
    found = sensitivity(net, watch, [0.9, 0.5], example_input=torch.zeros(2, 1, 6, 6))
    assert bits(net) == before
    assert {name: t.numpy().tobytes() for name, t in watch.seen[0].items()} == before
    index = 1
    for row, (name, size) in zip(found.rows, WEIGHTS.items(), strict=True):
        assert (row.name, row.size, row.weights, row.sparsity) == (name, size, size, 0.0)
        for sparsity in (0.5, 0.9):
            shown = watch.seen[index]
            zero = lowest(whole[name].numpy(), round(sparsity * size))
            right = np.where(zero, np.float32(0), whole[name].numpy())
            assert shown[name].numpy().tobytes() == right.astype(np.float32).tobytes()
            for other in shown.keys() - {name}:
                assert torch.equal(shown[other], whole[other])
            index += 1
            assert row.accuracy[sparsity] == 1 / (1 + index)
    assert index == len(watch.seen)
    assert found.accuracy == 0.5
    assert set(found.excluded) == {"0.bias", "1.weight", "1.bias", "4.bias", "7.bias"}


def test_shares_of_parameters_and_macs_by_hand():
    found = sensitivity(network(), lambda net: 1.0, [0.5], example_input=torch.zeros(1, 1, 6, 6))
    params = 36 + 4 + 8 + 216 + 6 + 72 + 3
    macs = {"0.weight": 36 * 16, "4.weight": 216 * 4, "7.weight": 72}
    for row in found.rows:
        assert row.params == WEIGHTS[row.name] / params
        assert row.macs == macs[row.name] / sum(macs.values())
    found = sensitivity(network(), lambda net: 1.0, [0.5])
    assert [row.macs for row in found.rows] == [None] * 3


def test_example_input_array_of_the_module_is_used():
    net = network()
    net.example_input_array = torch.zeros(1, 1, 6, 6)
    assert sensitivity(net, lambda net: 1.0, [0.5]).rows[0].macs is not None


@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_an_evaluation_that_fails_leaves_the_model_as_it_was(fail_at):
    net = network().train()
    net[3].eval()
    before = bits(net)
    with pytest.raises(OSError, match="the data is gone"):
        sensitivity(net, Watch(fail_at), [0.3, 0.6])
    assert bits(net) == before
    assert [module.training for module in net] == [i != 3 for i in range(8)]


def test_gradients_and_parameters_are_unchanged():
    net = network()
    net(torch.randn(4, 1, 6, 6)).square().mean().backward()
    held = {name: (p, p.data_ptr(), p.grad.clone()) for name, p in net.named_parameters()}
    for by in ("weights", "channels"):
        sensitivity(net, Watch(), [0.5], by=by, example_input=torch.zeros(2, 1, 6, 6))
    for name, parameter in net.named_parameters():
        same, place, grad = held[name]
        assert parameter is same
        assert parameter.data_ptr() == place
        assert torch.equal(parameter.grad, grad)


@settings(max_examples=25)
@given(
    sparsities=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4),
    criterion=st.sampled_from(["magnitude", "random", "taylor"]),
    start=st.floats(0, 0.9),
)
def test_zeros_are_counted_from_the_original_weights(sparsities, criterion, start):
    net = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    net(torch.randn(4, 7)).square().mean().backward()
    masks = regrow.prune(net, start)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    before, seen = bits(net), []

    def evaluate(model):
        seen.append({name: int((p == 0).sum()) for name, p in model.named_parameters()})
        return 0.5

    found = sensitivity(net, evaluate, sparsities, criterion=criterion, masks=masks)
    assert bits(net) == before
    sizes = {"0.weight": 35, "2.weight": 15}
    expected = []
    for name, size in sizes.items():
        gone = size - kept[name]
        counts = [min(round(s * size), size - 1) for s in sorted({*sparsities})]
        more = dict.fromkeys(count for count in counts if count > gone)
        expected += [{**{n: s - kept[n] for n, s in sizes.items()}, name: count} for count in more]
    assert [{n: zeros[n] for n in sizes} for zeros in seen[1:]] == expected
    for row in found.rows:
        assert row.sparsity == (sizes[row.name] - kept[row.name]) / sizes[row.name]


def test_sparsities_below_the_present_one_are_not_evaluated():
    net = network()
    masks = regrow.prune(net, 0.75, distribution="uniform")
    watch = Watch()
    found = sensitivity(net, watch, [0.3, 0.75, 0.9], masks=masks)
    assert len(watch.seen) == 1 + 3
    for row in found.rows:
        assert row.accuracy[0.3] == row.accuracy[0.75] == found.accuracy
        assert row.accuracy[0.9] != found.accuracy


def test_masks_with_nonzero_pruned_weights_raise():
    net = network()
    masks = regrow.prune(network(), 0.5)
    with pytest.raises(StateError, match=r"prune weights of 0\.weight that are not zero"):
        sensitivity(net, Watch(), [0.9], masks=masks)
    with pytest.raises(StateError, match="masked but not selected here"):
        sensitivity(net, Watch(), [0.9], masks={"nowhere": torch.ones(1, dtype=torch.bool)})


def test_one_weight_is_always_kept():
    found = sensitivity(nn.Linear(2, 2), lambda net: float(net.weight.count_nonzero()), [0.99])
    assert found.rows[0].accuracy == {0.99: 1.0}


def test_tied_weights_are_one_layer():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    found = sensitivity(net, lambda net: float((net[1].weight == 0).sum()), [0.5])
    assert [row.name for row in found.rows] == ["0.weight"]
    assert found.rows[0].accuracy[0.5] == 8


def test_patterns_select_the_layers():
    found = sensitivity(network(), Watch(), [0.5], exclude=["@last", "4"])
    assert [row.name for row in found.rows] == ["0.weight"]
    assert found.excluded["7.weight"] == "excluded by '@last'"
    with pytest.raises(ConfigError, match="matches no parameter"):
        sensitivity(network(), Watch(), [0.5], include=["conv"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsities": [90]}, ConfigError, "got 90: write 0.9"),
        ({"sparsities": [0.0]}, ConfigError, "must be above 0"),
        ({"sparsities": []}, ConfigError, "must be numbers in"),
        ({"sparsities": "0.5"}, ConfigError, "must be numbers in"),
        ({"by": "layers"}, ConfigError, "by must be one of channels, weights"),
        ({"by": "channels"}, ConfigError, "write example_input="),
        ({"criterion": "magnitud"}, ConfigError, "did you mean 'magnitude'"),
        ({"criterion": "movement"}, ConfigError, "collects its scores in training"),
        ({"criterion": "taylor"}, StateError, r"needs the gradient of 0\.weight"),
        ({"evaluate": lambda net: math.nan}, StateError, "must return a finite number.* got nan"),
        ({"evaluate": lambda net: None}, StateError, "got None"),
    ],
)  # fmt: skip
def test_wrong_arguments_raise(options, error, message):
    net = network()
    before = bits(net)
    with pytest.raises(error, match=message):
        sensitivity(net, **{"evaluate": lambda net: 1.0} | options)
    assert bits(net) == before
