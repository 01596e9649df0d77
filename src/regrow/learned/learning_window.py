# SPDX-License-Identifier: MIT
"""When masks are learned, and which sparsity is due."""

from __future__ import annotations

from dataclasses import dataclass

_UPDATES = 100  # within the learning


def target_at(progress: float, target: float, ramp: float) -> float:
    """Compute the sparsity that is due: a cubic rise within `ramp` of the learning, then constant.

    Source: Zhu and Gupta 2017, eq. 1.
    """
    part = min(1.0, progress / ramp) if ramp else 1.0
    return target - target * (1 - part) ** 3


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
