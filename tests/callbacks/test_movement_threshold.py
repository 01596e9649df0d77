# SPDX-License-Identifier: MIT
"""Soft movement pruning: its gradients against autograd, and whole fits that reach their target."""

import pytest
import torch
from learned_mask_fits import TOTAL, Before, Wide
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import copied, equal, fit, loader, samples, zeros

from regrow import ConfigError, LearnedMasks, SoftMovement
from regrow.learned.methods import MaskContext


class Step(torch.autograd.Function):
    """1 above 0; its gradient is 1."""

    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_gradients_equal_autograd_through_the_parametrisation(threshold):
    rule, drawn = SoftMovement(threshold), torch.Generator().manual_seed(0)
    w, s, g = torch.randn(3, 40, 30, generator=drawn, dtype=torch.float64)
    s = s * 3
    weight, scores = w.clone().requires_grad_(), s.clone().requires_grad_()
    gate = Step.apply(scores - torch.logit(torch.tensor(threshold, dtype=torch.float64)))
    (weight * gate).backward(g)
    assert torch.equal(rule.weights(w, s, MaskContext()), (weight * gate).detach())
    assert torch.equal(rule.weights(w, s, MaskContext()) != 0, s.sigmoid() > threshold)
    for back in (rule.vjp, super(SoftMovement, rule).vjp):
        to_weight, to_scores = back(w, s, MaskContext(), g)
        torch.testing.assert_close(to_weight, weight.grad, atol=1e-6, rtol=0)
        torch.testing.assert_close(to_scores, scores.grad, atol=1e-6, rtol=0)


def test_the_penalty_is_the_derivative_of_sigmoid():
    scores = torch.randn(50, dtype=torch.float64, requires_grad=True)
    scores.sigmoid().sum().backward()
    rule = SoftMovement(0.2)
    torch.testing.assert_close(rule.penalty_grad(scores.detach(), MaskContext()), scores.grad)
    for margin in (-1.0, 0.0, 2.0):
        score = torch.tensor(margin + torch.logit(torch.tensor(0.2)).item()).requires_grad_()
        score.sigmoid().backward()
        assert rule.penalty_slope(margin, score, MaskContext()) == pytest.approx(
            float(score.grad), rel=1e-5
        )


SLOW = pytest.mark.slow


@pytest.mark.parametrize("target", [0.9, *(pytest.param(t, marks=SLOW) for t in (0.8, 0.95))])
def test_sparsity_is_learned_within_half_a_point_then_reached_exactly(target):
    before, learned, module = Before(), LearnedMasks(SoftMovement(), target), Wide()
    fit(module, learned, before, data=loader(20), max_epochs=16)
    assert abs(before.share - target) < 0.005
    assert zeros(module) == learned.masks.pruned == round(target * TOTAL)
    assert float(module.loss(samples(80).tensors)) < 0.7, "chance is 1.1"


def test_resumed_fit_is_the_uninterrupted_one(tmp_path):
    def run(*callbacks, **kw):
        module, learned = Wide(), LearnedMasks(SoftMovement(), 0.8)
        fit(module, learned, *callbacks, max_epochs=4, **kw)
        return copied(module), learned.history

    saves = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    whole = run(saves, enable_checkpointing=True)
    assert equal(run(ckpt_path=tmp_path / "step=16.ckpt"), whole)


def test_threshold_outside_zero_to_one_raises():
    with pytest.raises(ConfigError, match=r"threshold must be in \[0, 1\), got 3"):
        SoftMovement(3)
