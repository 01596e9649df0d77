# SPDX-License-Identifier: MIT
"""Soft threshold, gates, top scores, each beside its vector-Jacobian product.

They are what `torch.func.vjp` of each gives, at a third of its time: a step has one for every
parameter.
"""

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


def inverse_temperature(progress: float, most: float) -> float:
    """Beta = most^progress: from 1 to `most`, exponentially.

    Source: Savarese et al. 2020, section 4.

    Example:
        >>> inverse_temperature(0.0, 200.0), inverse_temperature(1.0, 200.0)
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


def prob_active(log_alpha: Tensor) -> Tensor:
    """P(gate > 0) = sigmoid(log_alpha - 2/3 log(0.1 / 1.1)): what the L0 penalty sums.

    Source: Louizos et al. 2018, eq. 12.

    Example:
        >>> prob_active(torch.tensor([0.0]))
        tensor([0.8318])
    """
    return (log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()


def topk_straight_through(weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """F = w h, with h = 1 where |s| is among the highest; its gradient goes straight to |s|.

    d/ds = g w sign(s), also where the mask prunes; d/dw = g h.

    Args:
        weight: Any shape.
        scores: Of that shape.
        mask: Of that shape, True for the highest |s|.

    Source: Ramanujan et al. 2020 (edge-popup), arXiv:1911.13299, section 3.

    Example:
        >>> topk_straight_through(torch.tensor([2.0, 3.0]), torch.tensor([0.1, -0.2]),
        ...            torch.tensor([False, True]))
        tensor([0., 3.])
    """
    size = scores.abs()
    return weight * (mask + (size - size.detach()))


VJP = tuple[Tensor, Tensor]


def soft_threshold_vjp(weight: Tensor, score: Tensor, grad: Tensor) -> VJP:
    """d/dw = g [|w| > t]; d/ds = -t (1 - t) sum of g sign(w) [|w| > t], with t = sigmoid(s).

    Args:
        weight: Any shape.
        score: A scalar.
        grad: g, of the weight's shape.

    Returns:
        The products with respect to weight and score.

    Example:
        >>> import torch
        >>> soft_threshold_vjp(torch.tensor([2.0, -0.25]), torch.tensor(0.0), torch.ones(2))
        (tensor([1., 0.]), tensor(-0.2500))
    """
    threshold = score.sigmoid()
    signs = soft_threshold(weight, score).sign_()
    through = grad * signs
    to_score = -threshold * (1 - threshold) * through.sum()
    return through.mul_(signs), to_score


def sigmoid_gate_vjp(weight: Tensor, scores: Tensor, beta: float, grad: Tensor) -> VJP:
    """d/dw = g c; d/ds = g w beta c (1 - c), with c = sigmoid(beta s).

    Example:
        >>> import torch
        >>> sigmoid_gate_vjp(torch.tensor([2.0]), torch.tensor([0.0]), 2.0, torch.ones(1))
        (tensor([0.5000]), tensor([1.]))
    """
    gate = (beta * scores).sigmoid_()
    to_weight = grad * gate
    return to_weight, (1 - gate).mul_(to_weight).mul_(weight).mul_(beta)


def hard_concrete_vjp(weight: Tensor, log_alpha: Tensor, noise: Tensor | None, grad: Tensor) -> VJP:
    """d/dw = g gate; d/ds = g w 1.2 c (1 - c) / (2/3) where the gate is not cut off.

    Without noise there is no 2/3.

    Example:
        >>> import torch
        >>> hard_concrete_vjp(torch.tensor([2.0]), torch.tensor([0.0]), None, torch.ones(1))
        (tensor([0.5000]), tensor([0.6000]))
    """
    heat = 1.0 if noise is None else TEMPERATURE
    concrete = (log_alpha if noise is None else noise + log_alpha).div(heat).sigmoid_()
    gate = concrete * (HIGH - LOW) + LOW
    inside = (gate >= 0).logical_and_(gate <= 1)
    slope = (1 - concrete).mul_(concrete).mul_(inside).mul_((HIGH - LOW) / heat)
    return gate.clamp_(0, 1).mul_(grad), slope.mul_(weight).mul_(grad)


def topk_straight_through_vjp(weight: Tensor, scores: Tensor, mask: Tensor, grad: Tensor) -> VJP:
    """d/dw = g h; d/ds = g w sign(s): straight through the choice of the highest.

    Example:
        >>> import torch
        >>> weight, scores, mask = torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([False])
        >>> topk_straight_through_vjp(weight, scores, mask, torch.ones(1))
        (tensor([0.]), tensor([-2.]))
    """
    return grad * mask, scores.sign().mul_(weight).mul_(grad)
