# SPDX-License-Identifier: MIT
"""Each f(w, s) and its gradient against NumPy, finite differences and formulas by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.learned.mask_functions import (
    hard_concrete,
    inverse_temperature,
    prob_active,
    sigmoid_gate,
    soft_threshold,
    topk_straight_through,
)
from regrow.learned.methods import METHODS, MaskContext, MaskMethod, get_method

WIDE = torch.float64


def drawn(seed=0, shape=(5, 7)):
    generator = torch.Generator().manual_seed(seed)
    weight, scores = torch.randn(2, *shape, generator=generator, dtype=WIDE)
    return weight, scores, torch.rand(shape, generator=generator, dtype=WIDE)


def sigmoid(value):
    return 1 / (1 + np.exp(-np.asarray(value)))


def by_numpy(name, w, s, u):
    """f by NumPy, with nothing of the library."""
    if name == "str":
        return np.sign(w) * np.maximum(np.abs(w) - sigmoid(s), 0)
    if name == "cs":
        return w * sigmoid(3.0 * s)
    concrete = sigmoid(s) if name == "l0 at rest" else sigmoid(1.5 * (np.log(u / (1 - u)) + s))
    return w * np.clip(1.2 * concrete - 0.1, 0, 1)


CASES = {
    "str": lambda w, s, u: soft_threshold(w, s),
    "cs": lambda w, s, u: sigmoid_gate(w, s, 3.0),
    "l0 at rest": lambda w, s, u: hard_concrete(w, s),
    "l0": lambda w, s, u: hard_concrete(w, s, u.logit()),
}


@pytest.mark.parametrize("name", CASES)
def test_values_equal_numpys(name):
    weight, scores, noise = drawn()
    found = CASES[name](weight, scores, noise).numpy()
    expected = by_numpy(name, weight.numpy(), scores.numpy(), noise.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (expected == 0).any() or name == "cs"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_central_differences_in_numpy(name, seed):
    """Central differences of the NumPy form, to 1e-6."""
    weight, scores, noise = drawn(seed)
    _, back = torch.func.vjp(lambda w, s: CASES[name](w, s, noise), weight, scores)
    upstream = torch.randn(weight.shape, dtype=WIDE)
    to_weight, to_scores = back(upstream)
    w, s, u, step = weight.numpy(), scores.numpy(), noise.numpy(), 1e-6
    of_weight = by_numpy(name, w + step, s, u) - by_numpy(name, w - step, s, u)
    of_scores = by_numpy(name, w, s + step, u) - by_numpy(name, w, s - step, u)
    g = upstream.numpy()
    np.testing.assert_allclose(to_weight.numpy(), g * of_weight / (2 * step), atol=1e-6)
    np.testing.assert_allclose(to_scores.numpy(), g * of_scores / (2 * step), atol=1e-6)


def test_gradient_of_a_layers_threshold_sums_over_its_weights():
    weight = torch.tensor([[1.0, -2.0], [0.1, -0.3]], dtype=WIDE)
    score, upstream = torch.tensor(0.0, dtype=WIDE), torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    _, back = torch.func.vjp(soft_threshold, weight, score)
    to_weight, to_score = back(upstream.to(WIDE))
    assert to_weight.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert float(to_score) == -0.25 * 1.0 + 0.25 * 2.0  # sigmoid'(0) = 1/4


def test_topk_gradient_is_straight_through():
    weight, scores, _ = drawn()
    mask = scores.abs() >= scores.abs().flatten().sort().values[20]
    value, back = torch.func.vjp(lambda w, s: topk_straight_through(w, s, mask), weight, scores)
    assert torch.equal(value, torch.where(mask, weight, torch.zeros_like(weight)))
    upstream = torch.randn(weight.shape, dtype=WIDE)
    to_weight, to_scores = back(upstream)
    torch.testing.assert_close(to_weight, upstream * mask)
    torch.testing.assert_close(to_scores, upstream * weight * scores.sign())


def test_probability_of_open_gates_equals_their_sampled_fraction():
    log_alpha = torch.linspace(-4, 4, 9, dtype=WIDE)[:, None].expand(9, 200_000)
    noise = torch.rand(log_alpha.shape, dtype=WIDE, generator=torch.Generator().manual_seed(1))
    gates = hard_concrete(torch.ones_like(log_alpha), log_alpha, noise.logit())
    share = (gates > 0).double().mean(1)
    torch.testing.assert_close(share, prob_active(log_alpha[:, 0]), atol=0.005, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", METHODS)
def test_closed_form_gradients_equal_autograd(name, seed):
    """Each rule's own against autograd through its f, noise or none."""
    rule = get_method(name)
    weight, scores, noise = drawn(seed)
    scores = scores[0, 0] if name == "str" else scores
    upstream = torch.randn(weight.shape, dtype=WIDE)
    for moment in (
        MaskContext(0.2, mask=noise > 0.5),
        MaskContext(0.2, noise.logit(), noise > 0.5),
    ):
        w, s = weight.clone().requires_grad_(), scores.clone().requires_grad_()
        expected = torch.autograd.grad(rule.weights(w, s, moment), (w, s), upstream)
        for closed in (rule.vjp, partial(MaskMethod.vjp, rule)):
            found = closed(weight, scores, moment, upstream)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1, 1000))
def test_beta_rises_exponentially(one, other, most):
    """Equal stretches of time multiply it by the same factor."""
    middle = inverse_temperature((one + other) / 2, most)
    assert middle**2 == pytest.approx(
        inverse_temperature(one, most) * inverse_temperature(other, most), rel=1e-9
    )
    assert 1 <= middle <= most * (1 + 1e-12)
