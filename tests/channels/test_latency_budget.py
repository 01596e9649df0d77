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
