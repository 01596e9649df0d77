# SPDX-License-Identifier: MIT
"""A budget in milliseconds, with timers of known results."""

import pytest
import torch
from torch import nn

from regrow.channels import prune
from regrow.utils.errors import ConfigError

X = torch.zeros(2, 4)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )


def by_weights(model):
    """A timer of one microsecond per weight."""
    return sum(p.numel() for p in model.parameters() if p.ndim == 2) / 1000


def held(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_latency_budget_is_met_closely(sparsity):
    model = network()
    dense = by_weights(model)
    prune(model, X, sparsity, of="latency", timer=by_weights, round_to=1)
    assert by_weights(model) <= (1 - sparsity) * dense
    assert by_weights(model) > (1 - sparsity) * dense - 0.06 * dense  # 7 halvings, whole channels


def test_budget_may_be_given_in_milliseconds():
    model = network()
    prune(model, X, of="latency", latency_ms=2.0, timer=by_weights, round_to=1)
    assert 1.7 < by_weights(model) <= 2.0


def test_model_within_the_budget_is_not_cut():
    model = network()
    before = held(model)
    plan = prune(model, X, of="latency", latency_ms=100.0, timer=by_weights)
    assert plan.removed == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unreachable_budget_raises_with_the_fastest_cut_and_keeps_the_model():
    model = network()
    before = held(model)
    with pytest.raises(ConfigError, match=r"4\.48 ms.*fastest cut"):
        prune(model, X, of="latency", latency_ms=0.0001, timer=by_weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_failing_timer_leaves_the_model_unchanged():
    model, calls = network(), []

    def broken(small):
        calls.append(small)
        if len(calls) == 3:
            raise RuntimeError("the device is gone")
        return by_weights(small)

    before = held(model)
    with pytest.raises(RuntimeError, match="the device is gone"):
        prune(model, X, 0.5, of="latency", timer=broken)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Clock:
    """Time that passes only in forward passes, on a machine that others load more and more."""

    def __init__(self):
        self.now, self.load = 0.0, 1.0

    def __call__(self):
        return self.now


class Slow(nn.Sequential):
    """Takes a microsecond per weight and unit of load."""

    clock = Clock()

    def forward(self, x):
        self.clock.now += self.clock.load * by_weights(self) / 1e3
        self.clock.load *= 1.004
        return super().forward(x)


def test_load_that_comes_and_stays_does_not_count(monkeypatch):
    """Each cut is measured in turns with the original model: the machine becomes 10 times slower
    during the search, and the cut is the same."""
    Slow.clock = Clock()
    monkeypatch.setattr("regrow.profiling.latency.time.perf_counter", Slow.clock)
    model = Slow(*network())
    dense = by_weights(model)
    plan = prune(model, X, 0.5, of="latency", round_to=1)
    assert Slow.clock.load > 2
    assert 0.43 * dense < by_weights(model) <= 0.51 * dense
    assert plan.speedup is not None
    assert plan.speedup.ratio == pytest.approx(dense / by_weights(model), rel=0.01)


def test_plan_with_a_timer_of_the_user_has_no_interval():
    assert prune(network(), X, 0.5, of="latency", timer=by_weights).speedup is None


class NotCopied(nn.Sequential):
    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle this")


def test_model_that_cannot_be_copied_is_refused_with_a_way_out():
    with pytest.raises(ConfigError, match=r"cannot pickle this.*timer="):
        prune(NotCopied(*network()), X, 0.5, of="latency")
