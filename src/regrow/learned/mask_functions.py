# SPDX-License-Identifier: MIT
"""Effective weights F(w, s) of learned scores: soft threshold, gates, top scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The hard-concrete distribution: temperature and ends of the stretched interval.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1


def soft_threshold(weight: Tensor, score: Tensor) -> Tensor:
    """Compute F = sign(w) relu(|w| - sigmoid(s)), with one learned threshold per layer.

    Args:
        weight: Any shape.
        score: A scalar, or of a shape that broadcasts.

    Source: Kusupati et al. 2020 (STR), arXiv:2002.03231, eq. 3 and 4.

    Example:
        >>> soft_threshold(torch.tensor([2.0, -0.25]), torch.tensor(0.0))
        tensor([1.5000, 0.0000])
    """
    threshold = score.sigmoid()
    return weight - torch.clamp(weight, -threshold, threshold)  # the same, in two passes


def sigmoid_gate(weight: Tensor, scores: Tensor, beta: float) -> Tensor:
    """Compute F = w sigmoid(beta s): one gate per weight, harder for a higher `beta`.

    Source: Savarese et al. 2020 (continuous sparsification), arXiv:1912.04427, eq. 7.

    Example:
        >>> sigmoid_gate(torch.tensor([2.0, 2.0]), torch.tensor([0.0, 1.0]), 200.0)
        tensor([1., 2.])
    """
    return weight * (beta * scores).sigmoid()


def inverse_temperature(progress: float, most: float) -> float:
    """Compute beta = most^progress, which grows exponentially from 1 to `most`.

    Source: Savarese et al. 2020, section 4.

    Example:
        >>> inverse_temperature(0.0, 200.0), inverse_temperature(1.0, 200.0)
        (1.0, 200.0)
    """
    return float(most**progress)


def hard_concrete(weight: Tensor, log_alpha: Tensor, noise: Tensor | None = None) -> Tensor:
    """Compute F = w clamp(c (1.1 + 0.1) - 0.1, 0, 1): random gates, exactly 0 or 1 at times.

    With noise n = log u - log(1 - u), u uniform in (0, 1): c = sigmoid((n + log_alpha) / (2/3)).
    Without noise, as at evaluation: c = sigmoid(log_alpha).

    Source: Louizos et al. 2018 (L0 regularisation), arXiv:1712.01312, eq. 10, 11 and 13.

    Example:
        >>> hard_concrete(torch.tensor([2.0, 2.0]), torch.tensor([-3.0, 3.0]))
        tensor([0., 2.])
    """
    if noise is None:
        concrete = log_alpha.sigmoid()
    else:
        concrete = ((noise + log_alpha) / TEMPERATURE).sigmoid()
    return weight * (concrete * (HIGH - LOW) + LOW).clamp(0, 1)


def prob_active(log_alpha: Tensor) -> Tensor:
    """Compute P(gate > 0) = sigmoid(log_alpha - 2/3 log(0.1 / 1.1)); the L0 penalty is its sum.

    Source: Louizos et al. 2018, eq. 12.

    Example:
        >>> prob_active(torch.tensor([0.0]))
        tensor([0.8318])
    """
    return (log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()


def topk_straight_through(weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Compute F = w h, with h = 1 where `mask` marks the highest |s|.

    The gradient passes straight through h: d/ds = g w sign(s), also where the mask prunes.

    Source: Ramanujan et al. 2020 (edge-popup), arXiv:1911.13299, section 3.

    Example:
        >>> topk_straight_through(torch.tensor([2.0, 3.0]), torch.tensor([0.1, -0.2]),
        ...            torch.tensor([False, True]))
        tensor([0., 3.])
    """
    size = scores.abs()
    return weight * (mask + (size - size.detach()))
