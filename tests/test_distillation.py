# SPDX-License-Identifier: MIT
"""The distillation loss against NumPy and against sums by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.distillation import distillation_loss, soft_loss
from regrow.utils.errors import StateError


def by_numpy(student, teacher, temperature, axis=-1):
    def softmax(x):
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)

    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(axis=axis).mean()


@given(st.integers(0, 10**6), st.floats(0.5, 20), st.integers(1, 5), st.integers(2, 9))
def test_soft_loss_equals_the_formula_in_numpy(seed, temperature, rows, classes):
    drawn = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=drawn, dtype=torch.float64) * 3
    found = soft_loss(student, teacher, temperature)
    expected = by_numpy(student.numpy(), teacher.numpy(), temperature)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(found) >= -1e-12


def test_loss_and_gradient_are_zero_for_equal_distributions():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = soft_loss(logits, logits.detach() + 5, 3.0)  # softmax knows no shift
    loss.backward()
    assert abs(float(loss)) < 1e-12
    assert logits.grad.abs().max() < 1e-12


def test_gradient_equals_that_of_the_paper():
    """d/dz_i = T (q_i - p_i) / rows; Hinton et al., eq. 2 times T^2."""
    student = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 4, dtype=torch.float64)
    soft_loss(student, teacher, 2.5).backward()
    q, p = (student.detach() / 2.5).softmax(1), (teacher / 2.5).softmax(1)
    torch.testing.assert_close(student.grad, 2.5 * (q - p) / 5)


def test_classes_may_lie_along_another_dimension():
    student, teacher = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    expected = by_numpy(student.numpy(), teacher.numpy(), 2.0, axis=1)
    assert float(soft_loss(student, teacher, 2.0, dim=1)) == pytest.approx(expected)
    assert float(soft_loss(student, teacher, 2.0)) != pytest.approx(expected, rel=1e-3)


def test_half_precision_is_computed_in_float32():
    student, teacher = torch.randn(2, 6, 3).bfloat16()
    found = soft_loss(student, teacher, 4.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, soft_loss(student.float(), teacher.float(), 4.0))


def test_other_shapes_raise():
    with pytest.raises(StateError, match=r"shape \(2, 3\), the teacher's \(2, 4\)"):
        soft_loss(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)


def test_weight_interpolates_between_the_two_terms():
    own, soft = torch.tensor(1.0), torch.tensor(10.0)
    assert [float(distillation_loss(own, soft, w)) for w in (0.0, 0.5, 1.0)] == [1.0, 5.5, 10.0]
