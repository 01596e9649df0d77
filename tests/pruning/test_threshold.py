# SPDX-License-Identifier: MIT
"""Pruning of all weights below a threshold, against NumPy."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn, optim

import regrow
from regrow import ConfigError, Pruner, StateError
from regrow.criteria.elementwise import relative_magnitude
from regrow.pruning.config import PruningConfig, check_same_settings


def network(dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Conv2d(40, 30, 3), nn.Linear(40, 10))
    return net.to(dtype)


def arrays(net):
    return {
        name: parameter.detach().double().numpy().copy()
        for name, parameter in net.named_parameters()
        if parameter.dim() > 1
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [1e-4, 0.02, 0.05])
def test_exactly_the_weights_below_the_threshold_are_pruned(dtype, threshold):
    net = network(dtype)
    before = arrays(net)
    masks = regrow.prune(net, threshold=threshold)
    for name, values in before.items():
        expected = np.abs(values) >= np.float64(np.float32(threshold))
        assert np.array_equal(masks[name].numpy(), expected)
        assert np.array_equal(arrays(net)[name], np.where(expected, values, 0))


def test_weights_of_exactly_the_threshold_stay():
    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([[0.25, -0.5, 0.5, 1.0]])
    assert regrow.prune(layer, threshold=0.5)["weight"].tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("quality", [0.3, 1.0, 1.7])
def test_a_multiple_of_the_standard_deviation_of_each_layer(quality):
    net = network()
    with torch.no_grad():
        net[0].weight.mul_(100).add_(3)
    before = arrays(net)
    masks = regrow.prune(net, threshold=quality, criterion="relative_magnitude")
    for name, values in before.items():
        expected = np.abs(values) >= quality * np.std(values)
        assert np.array_equal(masks[name].numpy(), expected), name


def test_a_layer_of_equal_weights_is_not_below_any_multiple_of_its_deviation():
    assert relative_magnitude(torch.zeros(3)).tolist() == [np.inf] * 3
    assert relative_magnitude(torch.ones(3)).tolist() == [np.inf] * 3


def test_the_threshold_is_compared_with_the_scores_of_the_criterion():
    layer = nn.Linear(3, 1)
    layer.weight.data = torch.tensor([[1.0, 2.0, 3.0]])
    layer.weight.grad = torch.tensor([[3.0, -1.0, 0.1]])
    masks = regrow.prune(layer, threshold=1.0, criterion="taylor")
    assert masks["weight"].tolist() == [[True, True, False]]


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.5])
def test_each_layer_keeps_min_density(floor):
    net = network()
    before = arrays(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = regrow.prune(net, threshold=0.1, min_density=floor)
    for name, values in before.items():
        sizes = np.abs(values).ravel()
        kept = max(1, int(np.ceil(floor * sizes.size)), int((sizes >= np.float32(0.1)).sum()))
        expected = np.zeros(sizes.size, bool)
        expected[np.argsort(sizes, kind="stable")[sizes.size - kept :]] = True
        assert np.array_equal(masks[name].numpy().ravel(), expected)


def test_layers_that_would_be_empty_cause_a_warning_with_the_names():
    net = network()
    with torch.no_grad():
        net[3].weight.mul_(1e-3)
    with pytest.warns(UserWarning, match=r"3\.weight \(1 of 400\).*lower threshold") as seen:
        masks = regrow.prune(net, threshold=0.02)
    assert int(masks["3.weight"].sum()) == 1
    assert not any("0.weight" in str(warning.message) for warning in seen)


def test_pruned_weights_stay_pruned_and_kept_ones_are_compared_anew():
    net = network()
    pruner = Pruner(net, keep_removed=True)
    whole = arrays(net)
    entry = pruner.prune_below(0.01)
    assert (entry["kind"], entry["threshold"]) == ("prune", 0.01)
    pruned = {name: np.abs(values) < np.float32(0.01) for name, values in whole.items()}
    with torch.no_grad():
        for name in whole:
            net.get_parameter(name).mul_(0.5)
    now = arrays(net)
    assert pruner.prune_below(0.01)["pruned"] == pruner.pruned
    for name, values in now.items():
        expected = ~pruned[name] & (np.abs(values) >= np.float32(0.01))
        assert np.array_equal(pruner.masks[name].numpy(), expected)
    count = pruner.pruned
    pruner.prune_below(0.001)
    assert pruner.pruned == count, "a lower threshold brings nothing back"
    assert pruner.target == pruner.sparsity


def test_restored_weights_may_be_pruned_again():
    net = network()
    pruner, before = Pruner(net, keep_removed=True), arrays(net)
    pruner.prune_below(0.02)
    pruner.unprune()
    assert all(np.array_equal(values, before[name]) for name, values in arrays(net).items())
    assert pruner.prune_below(0.02)["pruned"] == sum(
        int((np.abs(values) < np.float32(0.02)).sum()) for values in before.values()
    )


def test_moments_of_weights_below_the_threshold_are_zero():
    net = nn.Linear(20, 20)
    adam = optim.Adam(net.parameters())
    net(torch.randn(5, 20)).square().sum().backward()
    adam.step()
    pruner = Pruner(net)
    pruner.prune_below(0.1, [adam])
    dropped = ~pruner.masks["weight"]
    assert dropped.any()
    assert not adam.state[net.weight]["exp_avg"][dropped].any()


def test_threshold_with_blocks_or_nan_scores_raises():
    with pytest.raises(ConfigError, match=r"threshold.*granularity='weight'"):
        Pruner(nn.Linear(8, 8), PruningConfig(granularity="2:4")).prune_below(0.1)
    layer = nn.Linear(8, 8)
    layer.weight.data[0, 0] = torch.nan
    with pytest.raises(StateError, match="weight has 1 NaN"):
        regrow.prune(layer, threshold=0.1)


@pytest.mark.parametrize("threshold", [0, -1, "0.1", True, None])
def test_a_threshold_is_a_number_above_zero(threshold):
    with pytest.raises(ConfigError, match="threshold"):
        Pruner(nn.Linear(8, 8)).prune_below(threshold)


def test_sparsity_or_threshold_not_both():
    with pytest.raises(ConfigError, match=r"sparsity=0\.5 and threshold=0\.1"):
        regrow.prune(nn.Linear(8, 8), 0.5, threshold=0.1)
    with pytest.raises(ConfigError, match=r"sparsity=0\.9.*threshold=0\.01"):
        regrow.prune(nn.Linear(8, 8))


@pytest.mark.parametrize(
    "settings",
    [{"distribution": "erk"}, {"layers": {"weight": 0.5}}, {"granularity": "block:2x2"}],
)
def test_settings_of_a_sparsity_raise_beside_a_threshold(settings):
    [name] = settings
    with pytest.raises(ConfigError, match=f"threshold.*{name}"):
        regrow.prune(nn.Linear(8, 8), threshold=0.1, **settings)


def test_config_with_another_threshold_does_not_match():
    old = PruningConfig(threshold=0.1).validated().to_dict()
    check_same_settings(old, PruningConfig(threshold=0.1).validated().to_dict())
    for other in (PruningConfig(), PruningConfig(threshold=0.2)):
        with pytest.raises(StateError, match=r"threshold=0\.1"):
            check_same_settings(old, other.validated().to_dict())
