# SPDX-License-Identifier: MIT
"""Linear, cubic and cosine increase of the sparsity.

A schedule is a frozen dataclass that turns a target and a timeline into a plan: the milestones
(step, sparsity) at which masks change. p is the completed fraction of the steps from `begin` to
`end`, or of the epochs, if both are given in epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from regrow.schedules.base import (
    BEGIN,
    END,
    EVERY,
    Milestone,
    ProportionalLayers,
    PruningPlan,
    check_interval,
    drop_unchanged,
    parse_interval,
    step_within,
)
from regrow.schedules.time import Time, TimeLike, Timeline
from regrow.utils.errors import ConfigError


@dataclass(frozen=True)
class _Gradual(ProportionalLayers):
    begin: TimeLike = BEGIN
    end: TimeLike = END
    every: TimeLike = EVERY

    def __post_init__(self) -> None:
        self.times()

    def times(self) -> tuple[Time, ...]:
        return parse_interval(self.begin, self.end, self.every)

    def curve(self, progress: float) -> float:
        """Return the fraction of the way from start to target after `progress` of the time."""
        raise TypeError("a gradual schedule is Linear, Cubic or Cosine")

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        begin, end, every = self.times()
        last = step_within("end", end, timeline)
        first = timeline.step(begin, "begin")
        if first > last:
            raise ConfigError(f"begin={begin} (step {first}) lies after end={end} (step {last})")
        check_interval(every, timeline.length(every, first), first, last)
        steps = [*timeline.repeat(begin, every, last), last]
        # a ramp from epoch to epoch rises by the same amounts whatever their length
        by_epoch = {time.unit for time in (begin, end) if time.amount} == {"ep"}
        places = [timeline.epochs(step) if by_epoch else step for step in (first, *steps)]
        length = places[-1] - places[0]
        ratios = [(place - places[0]) / length if length else 1.0 for place in places[1:]]
        return drop_unchanged(
            [
                Milestone(step, target if step == last else start + (target - start) * share)
                for step, share in zip(steps, map(self.curve, ratios), strict=True)
            ],
            start,
        )


class Linear(_Gradual):
    """Linear increase of sparsity from `begin` to `end`: s = s_i + (s_f - s_i) p.

    Attributes:
        begin: Time from which the sparsity rises.
        end: Time of the last milestone, at the target.
        every: Time between milestones; the first comes one `every` after `begin`.

    Example:
        >>> Linear(0, "20it", "10it").plan(0.5, Timeline(total=30))
        (Milestone(step=10, sparsity=0.25), Milestone(step=20, sparsity=0.5))
    """

    def curve(self, progress: float) -> float:
        return progress


class Cubic(_Gradual):
    """Fast at first, slow near the target: s = s_f + (s_i - s_f) (1 - p)^3.

    Attributes:
        begin: Time from which the sparsity rises.
        end: Time of the last milestone, at the target.
        every: Time between milestones; the first comes one `every` after `begin`.

    Source: Zhu and Gupta 2017, eq. 1.

    Example:
        >>> Cubic(0, "20it", "10it").plan(0.8, Timeline(total=30))
        (Milestone(step=10, sparsity=0.7000000000000001), Milestone(step=20, sparsity=0.8))
    """

    def curve(self, progress: float) -> float:
        return 1 - (1 - progress) ** 3


class Cosine(_Gradual):
    """Slow at both ends: s = s_i + (s_f - s_i) (1 - cos(pi p)) / 2.

    Attributes:
        begin: Time from which the sparsity rises.
        end: Time of the last milestone, at the target.
        every: Time between milestones; the first comes one `every` after `begin`.

    Example:
        >>> [round(m.sparsity, 3) for m in Cosine(0, "20it", "5it").plan(0.8, Timeline(30))]
        [0.117, 0.4, 0.683, 0.8]
    """

    def curve(self, progress: float) -> float:
        return (1 - math.cos(math.pi * progress)) / 2
