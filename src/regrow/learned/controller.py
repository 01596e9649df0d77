# SPDX-License-Identifier: MIT
"""A penalty weight that follows the sparsity ramp.

Weights are pruned when the penalty has lowered their margin to 0. At each update the controller
measures the margin at the sparsity due at the next update, and sets the penalty so that this margin
becomes 0 by then, plus a correction, learned from earlier errors, against the loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_SAMPLE = 1 << 18  # the most margins of which a quantile is computed
_UPDATES = 100  # within the learning
_GAIN = 0.5  # the part of an error that is attributed to the loss


def target_at(progress: float, target: float, ramp: float) -> float:
    """Compute the sparsity that is due: a cubic rise within `ramp` of the learning, then constant.

    Source: Zhu and Gupta 2017, eq. 1.

    Example:
        >>> target_at(0.35, 0.8, ramp=0.7), target_at(0.9, 0.8, ramp=0.7)
        (0.7000000000000001, 0.8)
    """
    part = min(1.0, progress / ramp) if ramp else 1.0
    return target - target * (1 - part) ** 3


def quantile(margins: Iterable[Tensor], share: float) -> float:
    """Compute the margin below which `share` of all lie; of many, from an evenly spaced sample.

    Example:
        >>> quantile([torch.tensor([3.0, 1.0]), torch.tensor([4.0, 2.0])], 0.75)
        3.0
    """
    margins = list(margins)
    total = sum(margin.numel() for margin in margins)
    step = max(1, total // _SAMPLE) | 1  # odd, because widths of layers are even
    sample = torch.cat([margin.reshape(-1)[::step].float() for margin in margins])
    rank = min(len(sample), max(1, round(share * len(sample))))
    return float(sample.kthvalue(rank).values)


@dataclass
class SparsityController:
    """A proportional-integral controller in units of scores.

    Attributes:
        limit: The maximal change of margins in a step.
        speed: How far the penalty lowers margins in a step.
        drift: The estimate of how far the loss raises them in a step.
        started: Whether `update` was called.

    Example:
        >>> controller = SparsityController(limit=1.0)
        >>> controller.update(margin=0.5, steps=10), controller.drift
        (0.05, 0.0)
        >>> controller.update(margin=0.1, steps=10), controller.drift  # an error of 0.1
        (0.015, 0.005)
    """

    limit: float
    speed: float = 0.0
    drift: float = 0.0
    started: bool = False

    def update(self, margin: float, steps: int) -> float:
        """Compute the speed until the next update.

        Args:
            margin: At the sparsity that is due at the next update, when it should be 0.
            steps: The number of steps until then.
        """
        if self.started and abs(self.speed) < self.limit:
            self.drift += _GAIN * margin / steps
        self.drift = max(-self.limit, min(self.limit, self.drift))
        self.speed = max(-self.limit, min(self.limit, margin / steps + self.drift))
        self.started = True
        return self.speed


@dataclass
class LearningWindow:
    """The steps in which masks are learned, and the progress.

    Attributes:
        target: The final sparsity.
        ramp: The fraction of the learning in which the sparsity rises.
        first: The first step that learns.
        last: The step at which the masks are fixed.
        last_update: The step of the last update of the penalty.
        share: The fraction of weights that the scores would have pruned then.

    Example:
        >>> window = LearningWindow(0.8, ramp=0.7, first=100, last=300)
        >>> window.progress(199), window.every, window.due(239)
        (0.5, 2, 0.8)
    """

    target: float
    ramp: float
    first: int = 0
    last: int = 0
    last_update: int = -1
    share: float = 0.0

    @property
    def length(self) -> int:
        return max(1, self.last - self.first)

    @property
    def every(self) -> int:
        """The number of steps between two updates of the penalty."""
        return max(1, self.length // _UPDATES)

    def progress(self, now: int) -> float:
        """The completed fraction of the learning after step `now`."""
        return min(1.0, (now + 1 - self.first) / self.length)

    def due(self, now: int) -> float:
        """The sparsity due after step `now`."""
        return target_at(self.progress(now), self.target, self.ramp)
