# SPDX-License-Identifier: MIT
"""A pruned network is repaired by the first means that suffices."""

import copy
import math

import pytest
import torch
from torch import nn

import regrow
from regrow.utils.errors import ConfigError, StateError


def draw(count=256, *shape, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def network(norm=True):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(24))
    return nn.Sequential(*layers).eval()


def pruned(sparsity=0.7, norm=True):
    model = network(norm)
    return model, copy.deepcopy(model), regrow.prune(model, sparsity)


def agreement(model, dense, x):
    with torch.no_grad():
        return float((model(x).argmax(1) == dense(x).argmax(1)).double().mean())


RUNGS = ["none", "batch_norm", "refit", "joint", "training"]


@pytest.mark.parametrize("wanted", RUNGS)
def test_it_stops_at_the_first_means_after_which_the_measure_holds(wanted):
    model, dense, masks = pruned()
    calls = []

    def measure(_):
        calls.append(1)
        return float(len(calls) > RUNGS.index(wanted))

    trained = []
    result = regrow.repair(
        model, dense, masks, [draw(256, 8)], measure=measure, train=trained.append
    )
    assert (result.rung, result.holds) == (wanted, True)
    assert list(result.measures) == RUNGS[: RUNGS.index(wanted) + 1]
    assert trained == ([model] if wanted == "training" else [])


def test_the_refit_starts_from_the_norms_of_the_dense_network():
    model, dense, masks = pruned()
    x, order = [draw(256, 8)], iter([0.0, 0.0, 1.0])
    regrow.repair(model, dense, masks, x, measure=lambda _: next(order))
    reference = network()
    regrow.calibrate(reference, x, 0.7, criterion="magnitude")
    for name, value in reference.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-6), name


def test_the_measure_is_the_agreement_with_the_dense_network():
    model, dense, masks = pruned()
    x = draw(256, 8)
    raw = agreement(model, dense, x)
    result = regrow.repair(model, dense, masks, x.split(100), at_least=2.0)
    assert not result.holds
    assert list(result.measures) == RUNGS[:-1]
    assert result.measures["none"] == raw
    assert result.measures[result.rung] == max(result.measures.values()) > raw
    assert agreement(model, dense, x) == result.measures[result.rung]
    assert all(torch.equal(model.get_parameter(n) != 0, mask) for n, mask in masks.items())


def test_the_best_remains_if_none_holds():
    model, dense, masks = pruned(norm=False)
    values = iter([0.3, 0.9, 0.5])
    states = []

    def measure(given):
        states.append(copy.deepcopy(given.state_dict()))
        return next(values)

    result = regrow.repair(model, dense, masks, [draw(256, 8)], measure=measure)
    assert (result.rung, result.holds) == ("refit", False)
    assert all(torch.equal(v, states[1][n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize("first", [0.5, math.nan])
def test_a_measure_that_is_nan_is_the_worst(first):
    """A pruned network may predict no example of a class, whose precision is then 0 / 0."""
    model, dense, masks = pruned(norm=False)
    values, states = iter([first, 0.3, math.nan]), []

    def measure(given):
        states.append(copy.deepcopy(given.state_dict()))
        return next(values)

    result = regrow.repair(model, dense, masks, [draw(256, 8)], measure=measure)
    best = 0 if first == 0.5 else 1
    assert (result.rung, result.holds) == (RUNGS[::2][best], False)
    assert all(torch.equal(v, states[best][n]) for n, v in model.state_dict().items())


def test_a_measure_that_is_never_a_number_is_refused():
    model, dense, masks = pruned()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StateError, match="measure must return a number"):
        regrow.repair(model, dense, masks, [draw(256, 8)], measure=lambda _: math.nan)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize("loss", [0.1, 0.0])
def test_a_measure_may_be_a_negative_loss(loss):
    model, dense, masks = pruned()
    values = iter([-0.5, -loss])
    result = regrow.repair(
        model, dense, masks, [draw(256, 8)], at_least=-loss, measure=lambda _: next(values)
    )
    assert (result.rung, result.holds) == ("batch_norm", True)


def test_an_error_of_the_measure_leaves_the_pruned_network_as_it_was():
    model, dense, masks = pruned()
    before = copy.deepcopy(model.state_dict())
    calls = []

    def measure(_):
        calls.append(1)
        return 0.0 if len(calls) < 3 else float("none")

    with pytest.raises(ValueError, match="none"):
        regrow.repair(model, dense, masks, [draw(256, 8)], measure=measure)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_invalid_settings_change_nothing():
    model, dense, masks = pruned()
    before = copy.deepcopy(model.state_dict())
    for given, message in (
        ({"at_least": "0.9"}, "is the text"),
        ({"samples": 0}, "samples must"),
        ({"at_least": -0.1}, "at_least must be a number above 0"),
        ({"at_least": math.nan, "measure": lambda _: 0.0}, "at_least must be a finite number"),
        ({"at_least": True, "measure": lambda _: 0.0}, "at_least must be a finite number"),
        ({"at_least": "-1", "measure": lambda _: 0.0}, "is the text"),
    ):
        with pytest.raises(ConfigError, match=message):
            regrow.repair(model, dense, masks, [draw(16, 8)], **given)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_an_error_leaves_the_pruned_network_as_it_was():
    model, dense, masks = pruned()
    before = copy.deepcopy(model.state_dict())

    def train(_):
        raise RuntimeError("no more memory")

    with pytest.raises(RuntimeError, match="no more memory"):
        regrow.repair(model, dense, masks, [draw(256, 8)], measure=lambda _: 0.0, train=train)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Frozen(nn.Module):
    """Its first layer runs without gradients."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        with torch.no_grad():
            x = self.body(x).relu()
        return self.head(x)


def test_a_network_without_gradients_is_repaired_without_the_joint_refit():
    dense = Frozen().eval()
    model = copy.deepcopy(dense)
    masks = regrow.prune(model, 0.5)
    result = regrow.repair(model, dense, masks, [draw(64, 8)], measure=lambda _: 0.0)
    assert list(result.measures) == ["none", "refit"]
    model, before = copy.deepcopy(dense), dense.state_dict()
    with pytest.raises(ConfigError, match="no gradient with respect to some of its weights"):
        regrow.calibrate(model, [draw(64, 8)], 0.5, criterion="magnitude", refit="joint")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_of_equal_measures_the_cheapest_repair_is_kept():
    model, dense, masks = pruned()
    before = copy.deepcopy(model.state_dict())
    result = regrow.repair(model, dense, masks, [draw(256, 8)], at_least=0.9, measure=lambda _: 0.5)
    assert (result.rung, result.holds) == ("none", False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Unusual(nn.Module):
    """Returns a mapping, and has state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.body = network()

    def forward(self, x):
        return {"features": x, "logits": self.body(x)}

    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        assert state == {"seen": 3}


def test_a_network_that_returns_a_mapping_and_has_other_state():
    torch.manual_seed(0)
    dense = Unusual().eval()
    model, x = copy.deepcopy(dense), draw(256, 8)
    result = regrow.repair(model, dense, regrow.prune(model, 0.7), [x], at_least=2.0)
    with torch.no_grad():
        same = model(x)["logits"].argmax(1) == dense(x)["logits"].argmax(1)
    assert result.measures[result.rung] == pytest.approx(float(same.double().mean()))
