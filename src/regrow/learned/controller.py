# SPDX-License-Identifier: MIT
"""Penalty weight that follows the sparsity ramp.

Scores that a penalty lowers prune when their margin reaches 0. From one look to the next the
controller asks how far the margin at the wanted sparsity is from 0, and gives the penalty the
weight that takes it there, plus the weight that it has learned to need against the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

SAMPLE = 1 << 18  # margins that are looked at


LOOKS = 100  # how often, within the learning


_LEARNED = 0.5  # how much of a miss is taken for the loss's doing


def target_at(progress: float, target: float, ramp: float) -> float:
    """The sparsity that is due: cubic up to the target within `ramp` of the learning, then held.

    Source: Zhu and Gupta 2017, eq. 1.

    Example:
        >>> target_at(0.35, 0.8, ramp=0.7), target_at(0.9, 0.8, ramp=0.7)
        (0.7000000000000001, 0.8)
    """
    part = min(1.0, progress / ramp) if ramp else 1.0
    return target - target * (1 - part) ** 3


def quantile(margins: Iterable[Tensor], share: float) -> float:
    """The margin below which a share of them lies; of many, of a sample at even steps.

    Example:
        >>> quantile([torch.tensor([3.0, 1.0]), torch.tensor([4.0, 2.0])], 0.75)
        3.0
    """
    margins = list(margins)
    total = sum(margin.numel() for margin in margins)
    step = max(1, total // SAMPLE) | 1  # odd: widths of layers are even
    sample = torch.cat([margin.reshape(-1)[::step].float() for margin in margins])
    rank = min(len(sample), max(1, round(share * len(sample))))
    return float(sample.kthvalue(rank).values)


@dataclass
class SparsityController:
    """A proportional and integral controller in the unit of scores.

    Attributes:
        limit: The fastest that margins may be moved, a step.
        speed: How fast the penalty lowers margins now, a step.
        drift: How fast the loss raises them against it, as far as is known.

    Example:
        >>> controller = SparsityController(limit=1.0)
        >>> controller.update(margin=0.5, steps=10), controller.drift
        (0.05, 0.0)
        >>> controller.update(margin=0.1, steps=10), controller.drift  # 0.1 was missed
        (0.015, 0.005)
    """

    limit: float
    speed: float = 0.0
    drift: float = 0.0
    begun: bool = False

    def update(self, margin: float, steps: int) -> float:
        """The speed until the next look.

        Args:
            margin: At the sparsity that is due at the next look; it should be 0 then.
            steps: Until then.
        """
        if self.begun and abs(self.speed) < self.limit:
            self.drift += _LEARNED * margin / steps
        self.drift = max(-self.limit, min(self.limit, self.drift))
        speed = margin / steps + self.drift
        self.speed = max(-self.limit, min(self.limit, speed))
        self.begun = True
        return self.speed


@dataclass
class LearningWindow:
    """The steps in which masks are learned, and the progress.

    Attributes:
        target: The sparsity that is learned.
        ramp: The part of the learning in which it rises.
        first: The first step that learns.
        last: The step at which masks are hardened.
        seen: The step of the last look.
        share: The fraction of weights that the scores would prune, at the last look.

    Example:
        >>> course = LearningWindow(0.8, ramp=0.7, first=100, last=300)
        >>> course.progress(199), course.every, course.due(239)
        (0.5, 2, 0.8)
    """

    target: float
    ramp: float
    first: int = 0
    last: int = 0
    seen: int = -1
    share: float = 0.0

    @property
    def length(self) -> int:
        return max(1, self.last - self.first)

    @property
    def every(self) -> int:
        """The steps between two looks."""
        return max(1, self.length // LOOKS)

    def progress(self, now: int) -> float:
        """How much of the learning lies behind after step `now`."""
        return min(1.0, (now + 1 - self.first) / self.length)

    def due(self, now: int) -> float:
        """The sparsity that is wanted after step `now`."""
        return target_at(self.progress(now), self.target, self.ramp)


def saved(course: LearningWindow, controller: SparsityController) -> dict[str, Any]:
    """Both as builtin types."""
    return {"course": asdict(course), "controller": asdict(controller)}


def restored(state: Mapping[str, Any]) -> tuple[LearningWindow, SparsityController]:
    """What `saved` was given."""
    return LearningWindow(**state["course"]), SparsityController(**state["controller"])
