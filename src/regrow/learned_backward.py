# SPDX-License-Identifier: MIT
"""Vector-Jacobian products of the functions of `regrow.learned`, in closed form.

They are what `torch.func.vjp` of each gives, at a third of its time: a step has one for every
parameter.
"""

from __future__ import annotations

from torch import Tensor

from regrow.learned import HIGH, LOW, TEMPERATURE, soft_threshold

Back = tuple[Tensor, Tensor]


def soft_threshold_back(weight: Tensor, score: Tensor, grad: Tensor) -> Back:
    """d/dw = g [|w| > t]; d/ds = -t (1 - t) sum of g sign(w) [|w| > t], with t = sigmoid(s).

    Args:
        weight: Any shape.
        score: A scalar.
        grad: g, of the weight's shape.

    Returns:
        The products with respect to weight and score.

    Example:
        >>> import torch
        >>> soft_threshold_back(torch.tensor([2.0, -0.25]), torch.tensor(0.0), torch.ones(2))
        (tensor([1., 0.]), tensor(-0.2500))
    """
    threshold = score.sigmoid()
    signs = soft_threshold(weight, score).sign_()
    through = grad * signs
    to_score = -threshold * (1 - threshold) * through.sum()
    return through.mul_(signs), to_score


def sigmoid_gate_back(weight: Tensor, scores: Tensor, beta: float, grad: Tensor) -> Back:
    """d/dw = g c; d/ds = g w beta c (1 - c), with c = sigmoid(beta s).

    Example:
        >>> import torch
        >>> sigmoid_gate_back(torch.tensor([2.0]), torch.tensor([0.0]), 2.0, torch.ones(1))
        (tensor([0.5000]), tensor([1.]))
    """
    gate = (beta * scores).sigmoid_()
    to_weight = grad * gate
    return to_weight, (1 - gate).mul_(to_weight).mul_(weight).mul_(beta)


def hard_concrete_back(
    weight: Tensor, log_alpha: Tensor, noise: Tensor | None, grad: Tensor
) -> Back:
    """d/dw = g gate; d/ds = g w 1.2 c (1 - c) / (2/3) where the gate is not cut off.

    Without noise there is no 2/3.

    Example:
        >>> import torch
        >>> hard_concrete_back(torch.tensor([2.0]), torch.tensor([0.0]), None, torch.ones(1))
        (tensor([0.5000]), tensor([0.6000]))
    """
    heat = 1.0 if noise is None else TEMPERATURE
    concrete = (log_alpha if noise is None else noise + log_alpha).div(heat).sigmoid_()
    gate = concrete * (HIGH - LOW) + LOW
    inside = (gate >= 0).logical_and_(gate <= 1)
    slope = (1 - concrete).mul_(concrete).mul_(inside).mul_((HIGH - LOW) / heat)
    return gate.clamp_(0, 1).mul_(grad), slope.mul_(weight).mul_(grad)


def top_scores_back(weight: Tensor, scores: Tensor, mask: Tensor, grad: Tensor) -> Back:
    """d/dw = g h; d/ds = g w sign(s): straight through the choice of the highest.

    Example:
        >>> import torch
        >>> top_scores_back(torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([False]),
        ...                 torch.ones(1))
        (tensor([0.]), tensor([-2.]))
    """
    return grad * mask, scores.sign().mul_(weight).mul_(grad)
