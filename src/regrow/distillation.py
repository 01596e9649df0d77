# SPDX-License-Identifier: MIT
"""Distillation loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.utils.errors import StateError


def soft_loss(student: Tensor, teacher: Tensor, temperature: float, dim: int = -1) -> Tensor:
    """Compute T^2 KL(teacher / T || student / T), the mean over all samples.

    With p = softmax(teacher / T) and q = softmax(student / T): T^2 sum_c p_c (log p_c - log q_c).
    The factor T^2 keeps the size of gradients while T changes.

    Args:
        student: Logits, classes along `dim`.
        teacher: Logits of the same shape.
        temperature: T, above 0; a higher one gives small logits more weight.
        dim: The dimension of classes.

    Returns:
        A scalar in float32 (float64 for such logits).

    Raises:
        StateError: If shapes differ.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2 and 2.1.

    Example:
        >>> round(float(soft_loss(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]), 2.0)), 4)
        0.4438
    """
    if student.shape != teacher.shape:
        raise StateError(
            f"the student's logits have shape {tuple(student.shape)}, the teacher's "
            f"{tuple(teacher.shape)}: both must be of the same classes and samples"
        )
    wide = student.to(torch.promote_types(student.dtype, torch.float32))
    p = F.log_softmax(teacher.to(wide) / temperature, dim)
    q = F.log_softmax(wide / temperature, dim)
    rows = student.numel() // student.shape[dim]
    return F.kl_div(q, p, reduction="sum", log_target=True) * (temperature**2 / rows)


def distillation_loss(own: Tensor, soft: Tensor, weight: float) -> Tensor:
    """Compute (1 - weight) own + weight soft, of the student's loss and what `soft_loss` gave."""
    return (1 - weight) * own + weight * soft
