# SPDX-License-Identifier: MIT
"""Soft movement pruning: learned scores against a threshold, under a penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regrow.errors import check_rate
from regrow.learned_backward import Back
from regrow.learned_rules import Given, Rule


@dataclass(frozen=True)
class SoftMovement(Rule):
    """Kept is what has sigmoid(s) above a threshold; the penalty is sum sigmoid(s).

    F = w h with h = 1 where sigmoid(s) > threshold; the gradient goes straight through h:
    d/ds = g w, also where h prunes, and d/dw = g h. Hard movement pruning, which keeps the highest
    of such scores, is `MagnitudePruning(criterion="movement", soft=True)`.

    Attributes:
        threshold: In (0, 1).

    Source: Sanh et al. 2020 (movement pruning), arXiv:2005.07683 (its soft variant).

    Example:
        >>> rule, scores = SoftMovement(0.5), torch.tensor([-1.0, 1.0])
        >>> rule.weights(torch.tensor([2.0, 3.0]), scores, Given())
        tensor([0., 3.])
    """

    travel: ClassVar[float] = 60.0
    reach: ClassVar[float] = 120.0

    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_rate("threshold", self.threshold)

    def start(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(weight)

    def weights(self, weight: Tensor, scores: Tensor, given: Given) -> Tensor:
        open_ = self.margin(weight, scores) > 0
        return weight * (open_ + (scores - scores.detach()))

    def back(self, weight: Tensor, scores: Tensor, given: Given, grad: Tensor) -> Back:
        return grad * (self.margin(weight, scores) > 0), grad * weight

    def pull(self, scores: Tensor, given: Given) -> Tensor:
        gate = scores.sigmoid()
        return (1 - gate).mul_(gate)

    def margin(self, weight: Tensor, scores: Tensor) -> Tensor:
        return scores - self._shut

    def slope(self, margin: float, scores: Tensor, given: Given) -> float:
        return float(self.pull(torch.tensor(margin + self._shut, dtype=torch.float64), given))

    @property
    def _shut(self) -> float:
        """The score at the threshold."""
        return math.log(self.threshold / (1 - self.threshold))
