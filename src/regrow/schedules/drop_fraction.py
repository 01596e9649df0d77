# SPDX-License-Identifier: MIT
"""Update steps and drop fraction of dynamic sparse training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from regrow.schedules.base import Milestone, ProportionalLayers, PruningPlan
from regrow.schedules.time import Time, TimeLike, Timeline, parse_time
from regrow.utils.errors import ConfigError


def drop_fraction_at(step: int, end: int, fraction: float = 0.3) -> float:
    """Compute the fraction of the kept weights that an update drops.

    fraction / 2 (1 + cos(pi step / end)) before `end`, 0 from `end` on.

    Source: Evci et al. 2020 (RigL), section 3.
    """
    return fraction / 2 * (1 + math.cos(math.pi * step / end)) if step < end else 0.0


@dataclass(frozen=True)
class DropGrowSchedule(ProportionalLayers):
    """Sparse from the first step on, with an update every `every` before `end`."""

    every: TimeLike = "100it"
    end: TimeLike = 0.75

    def __post_init__(self) -> None:
        for what, time in zip(("every", "end"), self.times(), strict=True):
            if time.amount == 0:
                raise ConfigError(
                    f"{what} must be above 0, got {time}: write '100it', or grow='none' for "
                    "constant masks"
                )

    def times(self) -> tuple[Time, ...]:
        return parse_time("every", self.every), parse_time("end", self.end)

    def stop(self, timeline: Timeline) -> int:
        """Return the step after which masks do not change."""
        step = timeline.step(parse_time("end", self.end), "end")
        if timeline.end is not None and step > timeline.end:
            raise ConfigError(
                f"end={self.end} is step {step}, but the fit ends before step {timeline.end}: "
                "write an earlier time, or train longer"
            )
        return step

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        stop = self.stop(timeline)
        first, *later = timeline.repeat(Time(0, "it"), parse_time("every", self.every), stop) or [
            stop
        ]
        if not later:
            raise ConfigError(
                f"every={self.every} leaves no update before end={self.end} (step {stop}): write "
                "a smaller every, or grow='none' for constant masks"
            )
        steps = [first, *later] if start < target else later
        return tuple(Milestone(step, target) for step in steps)
