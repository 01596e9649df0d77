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
    """The steps in which masks are learned, and the progress."""

    target: float  # the final sparsity
    ramp: float  # the fraction of the learning in which the sparsity rises
    first: int = 0  # the first step that learns
    last: int = 0  # the step at which the masks are fixed
    last_update: int = -1  # the step of the last update of the penalty
    share: float = 0.0  # the fraction of weights that the scores would have pruned then

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
