# SPDX-License-Identifier: MIT
"""Pruning in one call."""

import copy
import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import regrow
from regrow.utils.errors import ConfigError, StateError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 10))


@pytest.mark.parametrize("sparsity", [0, 0.123, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("distribution", ["global", "uniform", "erk", "lamp"])
def test_target_is_reached_exactly(sparsity, distribution):
    model = network()
    masks = regrow.prune(model, sparsity, distribution=distribution)
    assert masks.pruned == round(sparsity * 608)
    zeros = sum(int((m.weight == 0).sum()) for m in (model[0], model[3]))
    assert zeros == masks.pruned
    assert model[1].weight.all()
    assert model[3].bias.all()


def test_pruned_weights_equal_torchs_global_unstructured():
    ours, theirs = network(), network()
    regrow.prune(ours, 0.8)
    layers = [(theirs[0], "weight"), (theirs[3], "weight")]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=round(0.8 * 608))
    assert torch.equal(ours[0].weight, theirs[0].weight)
    assert torch.equal(ours[3].weight, theirs[3].weight)


def test_custom_criterion_is_taken():
    model = network()
    masks = regrow.prune(model, 0.5, criterion=lambda w: -w.abs(), include=["3"])
    assert model[3].weight[masks["3.weight"]].abs().max() <= 0.12
    regrow.prune(network(), 0.5, criterion=torch.abs)


def test_gradient_criteria_read_gradients():
    model = network()
    with pytest.raises(StateError, match=r"needs the gradient of 0.weight"):
        regrow.prune(model, 0.5, criterion="snip")
    model(torch.randn(2, 4, 4, 4)).square().sum().backward()
    scores = (model[3].weight * model[3].weight.grad).detach().abs()
    masks = regrow.prune(model, 0.5, criterion="snip", include=["3"])
    assert scores[~masks["3.weight"]].max() <= scores[masks["3.weight"]].min()


def test_layers_include_exclude_and_seed_are_passed_on():
    masks = regrow.prune(network(), 0.9, layers={"3": 0.5})
    assert masks.density("3.weight") == 0.5
    assert list(regrow.prune(network(), 0.9, exclude="@first")) == ["3.weight"]
    assert list(regrow.prune(network(), 0.9, include="*.bias")) == ["0.bias", "1.bias", "3.bias"]
    a, b, c = (regrow.prune(network(), 0.5, criterion="random", seed=s) for s in (0, 0, 1))
    assert a.digest() == b.digest() != c.digest()


def test_n_of_m_and_block_granularity():
    masks = regrow.prune(network(), 0.5, granularity="2:4")
    groups = masks["0.weight"].movedim(1, -1).reshape(-1, 4).sum(1)
    assert groups.eq(2).all()
    assert regrow.prune(network(), 2 / 3, granularity="block:2x4", include=["3"]).pruned == 27 * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 90}, "write 0.9 for 90 %"),
        (
            {"sparsity": 0.9, "granularity": "2:4"},
            "has sparsity 0.5 and no other, got sparsity=0.9",
        ),
        ({"sparsity": 0.5, "granularity": "1:4"}, "has sparsity 0.75 and no other"),
        ({"sparsity": 0.5, "distribution": "layerwise"}, "distribution must be one of"),
        ({"sparsity": 0.5, "include": ["fc"]}, "include pattern 'fc' matches no parameter"),
        ({"sparsity": 0.5, "layers": {"fc": 0.1}}, "layers pattern 'fc' matches no parameter"),
    ],
)
def test_wrong_arguments_raise_before_anything_changes(arguments, message):
    model = network()
    with pytest.raises(ConfigError, match=message):
        regrow.prune(model, **arguments)
    assert model[3].weight.all()


def test_models_on_the_meta_device_are_refused():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(8, 4))
    for act in (regrow.sparsity, lambda m: regrow.prune(m, 0.5), regrow.Masks.from_zeros):
        with pytest.raises(StateError, match=r"0\.weight is on the meta device.*to_empty"):
            act(net)


def test_a_gradient_that_shares_memory_is_masked():
    net = nn.Linear(8, 4)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    masks = regrow.prune(net, 0.5)
    before = net.weight.detach().clone()
    with regrow.enforce(net, masks, sgd):
        [net.weight.grad] = torch.autograd.grad(net.weight.sum(), [net.weight])
        assert net.weight.grad.stride() == (0, 0)
        sgd.step()
    assert torch.equal(net.weight, before - 0.1 * masks["weight"])


def test_an_optimizer_of_another_model_is_noticed():
    net = nn.Linear(8, 4)
    other = torch.optim.SGD(copy.deepcopy(net).parameters(), lr=0.1)
    masks = regrow.prune(net, 0.5)
    with pytest.warns(UserWarning, match="the optimizer trains no masked parameter"):
        regrow.enforce(net, masks, other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regrow.enforce(net, masks, torch.optim.SGD(net.parameters(), lr=0.1))


class Score(nn.Module):
    def forward(self, weight, grad):
        return weight.abs() * grad.abs()


def power(weight, grad, exponent):
    return weight.abs() ** exponent


def test_criteria_may_be_modules_and_partial_functions():
    net = nn.Linear(8, 4)
    same = copy.deepcopy(net)
    masks = regrow.prune(net, 0.5, criterion=functools.partial(power, exponent=2))
    assert torch.equal(masks["weight"], regrow.prune(same, 0.5)["weight"])
    with pytest.raises(StateError, match="needs the gradient of weight"):
        regrow.prune(nn.Linear(8, 4), 0.5, criterion=Score())
    one, two = nn.Linear(8, 4), nn.Linear(8, 4)
    two.load_state_dict(one.state_dict())
    for model in (one, two):
        model(torch.linspace(-1, 2, 16).view(2, 8)).square().sum().backward()
    masks = regrow.prune(one, 0.5, criterion=Score())
    assert torch.equal(masks["weight"], regrow.prune(two, 0.5, criterion="taylor")["weight"])
