# SPDX-License-Identifier: MIT
"""When masks of sparse training are drawn, and when they move."""

from __future__ import annotations

from dataclasses import dataclass

from regrow.errors import ConfigError
from regrow.plans import Milestone, Plan, Proportional
from regrow.time import Time, TimeLike, Timeline, parse


@dataclass(frozen=True)
class Updates(Proportional):
    """Sparse from the first step on; an update every `every`, up to and without `end`.

    Example:
        >>> [milestone.step for milestone in Updates("4it", 0.5).plan(0.9, Timeline(total=20))]
        [0, 4, 8]
    """

    every: TimeLike = "100it"
    end: TimeLike = 0.75

    def __post_init__(self) -> None:
        for what, time in zip(("every", "end"), self.times(), strict=True):
            if time.amount == 0:
                raise ConfigError(
                    f"{what} must be above 0, got {time}: write '100it', or grow='none' for masks "
                    "that stand still"
                )

    def times(self) -> tuple[Time, ...]:
        return parse("every", self.every), parse("end", self.end)

    def stop(self, timeline: Timeline) -> int:
        """The step from which on masks stand still.

        Raises:
            ConfigError: If the fit ends before it.
        """
        step = timeline.step(parse("end", self.end), "end")
        if timeline.end is not None and step > timeline.end:
            raise ConfigError(
                f"end={self.end} is step {step}, but the fit ends before step {timeline.end}: "
                "write an earlier time, or train longer"
            )
        return step

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> Plan:
        stop = self.stop(timeline)
        first, *later = timeline.repeat(Time(0, "it"), parse("every", self.every), stop) or [stop]
        if not later:
            raise ConfigError(
                f"every={self.every} leaves no update before end={self.end} (step {stop}): write "
                "a smaller every, or grow='none' for masks that stand still"
            )
        steps = [first, *later] if start < target else later
        return tuple(Milestone(step, target) for step in steps)
