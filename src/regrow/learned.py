# SPDX-License-Identifier: MIT
"""Learnable masks as functions f(w, s) of weights and scores, each with its gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of the hard-concrete distribution: temperature and the ends of the stretched interval.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1


def soft_threshold(weight: Tensor, score: Tensor) -> Tensor:
    """F = sign(w) relu(|w| - sigmoid(s)): a learned threshold, one a layer.

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
    """F = w sigmoid(beta s): a gate a weight that hardens while beta rises.

    Args:
        weight: Any shape.
        scores: Of that shape.
        beta: The inverse temperature.

    Source: Savarese et al. 2020 (continuous sparsification), arXiv:1912.04427, eq. 7.

    Example:
        >>> sigmoid_gate(torch.tensor([2.0, 2.0]), torch.tensor([0.0, 1.0]), 200.0)
        tensor([1., 2.])
    """
    return weight * (beta * scores).sigmoid()


def rising(progress: float, most: float) -> float:
    """Beta = most^progress: from 1 to `most`, exponentially.

    Source: Savarese et al. 2020, section 4.

    Example:
        >>> rising(0.0, 200.0), rising(1.0, 200.0)
        (1.0, 200.0)
    """
    return float(most**progress)


def hard_concrete(weight: Tensor, log_alpha: Tensor, noise: Tensor | None = None) -> Tensor:
    """F = w clamp(c (1.1 + 0.1) - 0.1, 0, 1): gates that are exactly 0 or 1 with a chance.

    With noise n = log u - log(1 - u), u uniform in (0, 1): c = sigmoid((n + log_alpha) / (2/3)).
    Without, as at evaluation: c = sigmoid(log_alpha).

    Args:
        weight: Any shape.
        log_alpha: Of that shape.
        noise: Of that shape; None is the deterministic gate.

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


def chance_open(log_alpha: Tensor) -> Tensor:
    """P(gate > 0) = sigmoid(log_alpha - 2/3 log(0.1 / 1.1)): what the L0 penalty sums.

    Source: Louizos et al. 2018, eq. 12.

    Example:
        >>> chance_open(torch.tensor([0.0]))
        tensor([0.8318])
    """
    return (log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()


def top_scores(weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """F = w h, with h = 1 where |s| is among the highest; its gradient goes straight to |s|.

    d/ds = g w sign(s), also where the mask prunes; d/dw = g h.

    Args:
        weight: Any shape.
        scores: Of that shape.
        mask: Of that shape, True for the highest |s|.

    Source: Ramanujan et al. 2020 (edge-popup), arXiv:1911.13299, section 3.

    Example:
        >>> top_scores(torch.tensor([2.0, 3.0]), torch.tensor([0.1, -0.2]),
        ...            torch.tensor([False, True]))
        tensor([0., 3.])
    """
    size = scores.abs()
    return weight * (mask + (size - size.detach()))


def straight_through(weight: Tensor, mask: Tensor) -> Tensor:
    """F = w m, whose gradient goes to all of w as if m were 1: what `soft=True` trains with.

    Source: Guo et al. 2016 (dynamic network surgery); Lin et al. 2020 (dynamic pruning with
    feedback).

    Example:
        >>> straight_through(torch.tensor([2.0, 3.0]), torch.tensor([False, True]))
        tensor([0., 3.])
    """
    return weight + (weight * mask - weight).detach()
