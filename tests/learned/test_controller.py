# SPDX-License-Identifier: MIT
"""The controller on simulated scores that a loss pulls the other way."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.learned.controller import (
    LearningWindow,
    SparsityController,
    quantile,
    target_at,
)
from regrow.learned.methods import (
    L0,
    METHODS,
    STR,
    ContinuousSparsification,
    MaskContext,
    get_method,
)
from regrow.utils.errors import ConfigError


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=40), st.floats(0.01, 1))
def test_quantile_is_an_order_statistic(values, share):
    found = quantile([torch.tensor(values, dtype=torch.float32)], share)
    rank = min(len(values), max(1, round(share * len(values))))
    assert found == sorted(values)[rank - 1]


def test_quantile_of_many_values_is_estimated_from_a_sample():
    margins = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    found = quantile([margins[:300_000], margins[300_000:]], 0.9)
    assert abs(float((margins <= found).double().mean()) - 0.9) < 0.002


@given(st.floats(0, 1), st.floats(0.01, 0.99), st.floats(0.05, 1))
def test_the_ramp_rises_to_the_target_and_stays(progress, target, ramp):
    due = target_at(progress, target, ramp)
    assert 0 <= due <= target
    assert due == target or progress < ramp
    assert target_at(min(1, progress + 0.01), target, ramp) >= due


def test_target_is_due_at_once_without_a_ramp():
    assert target_at(0.0, 0.7, ramp=0.0) == 0.7


@pytest.mark.parametrize("target", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("push", [0.0, 0.002, 0.01])
def test_target_holds_against_an_unknown_drift(target, push):
    """Scores drift upwards, noisily; within half a point in the end."""
    rng = np.random.default_rng(0)
    scores = rng.normal(3.0, 1.0, 20_000)
    window = LearningWindow(target, ramp=0.7, first=0, last=1000)
    controller = SparsityController(limit=0.05)
    for now in range(window.length):
        if now % window.every == 0:
            margin = quantile([torch.tensor(scores)], window.due(now + window.every - 1))
            speed = controller.update(margin, window.every)
        scores += push * (1 + 0.5 * np.sin(now / 150)) + rng.normal(0, 0.002, scores.shape) - speed
    assert abs(float((scores <= 0).mean()) - target) < 0.005


def test_speed_never_exceeds_its_limit():
    controller = SparsityController(limit=0.1)
    assert controller.update(100.0, 1) == 0.1
    assert controller.update(-100.0, 1) == -0.1


def regulariser(rule, scores, progress):
    if isinstance(rule, STR):
        return (scores - 5.0).square().sum() / 2
    if isinstance(rule, L0):
        return torch.sigmoid(scores - 2 / 3 * np.log(0.1 / 1.1)).sum()
    return torch.sigmoid(200.0**progress * scores).sum()


@pytest.mark.parametrize("rule", [STR(), L0(), ContinuousSparsification()])
def test_penalty_gradient_equals_autograd(rule):
    scores = torch.linspace(-3, 3, 21, dtype=torch.float64, requires_grad=True)
    [expected] = torch.autograd.grad(regulariser(rule, scores, 0.3), scores)
    found = rule.penalty_grad(scores.detach(), MaskContext(progress=0.3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [STR(), L0(), ContinuousSparsification()])
@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.02, 1.0])
def test_penalty_slope_equals_a_finite_difference_of_the_margin(rule, margin):
    """By taking a small step of it."""
    weight = torch.full((1,), 0.01, dtype=torch.float64)
    moment, step = MaskContext(progress=0.3), 1e-7
    scores = torch.zeros((), dtype=torch.float64)
    for _ in range(60):  # the score that has this margin
        scores = scores + (margin - rule.margin(weight, scores)) * (
            -1 if isinstance(rule, STR) else 1
        )
    after = rule.margin(weight, scores - step * rule.penalty_grad(scores, moment))
    speed = float(rule.margin(weight, scores) - after) / step
    assert rule.penalty_slope(margin, scores, moment) == pytest.approx(speed, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_weights_with_positive_margin_are_kept(name):
    rule = get_method(name)
    weight = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 0.01
    scores = rule.init_scores(weight, torch.Generator().manual_seed(1))
    if scores.dim():
        scores = torch.randn(200, generator=torch.Generator().manual_seed(2)) * 4
    kept = rule.margin(weight, scores) > 0
    mask = scores.abs() > 0 if rule.needs_topk else None
    late = MaskContext(progress=1.0, mask=mask)
    effective = rule.weights(weight, scores, late)
    least = 0.5 if name == "cs" else 0.0  # its gates are hard at 1/2
    assert torch.equal(kept, effective.abs() > weight.abs() * least)
    assert kept.any()


def test_unknown_methods_raise():
    with pytest.raises(ConfigError, match=r"method must be one of .*, got 0.9"):
        get_method(0.9)
