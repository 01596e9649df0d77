# SPDX-License-Identifier: MIT
"""All pruning at once (OneShot), or at listed times (Table)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from regrow.schedules.base import (
    BEGIN,
    Milestone,
    ProportionalLayers,
    PruningPlan,
    drop_unchanged,
    step_within,
)
from regrow.schedules.time import Time, TimeLike, Timeline, parse_time
from regrow.utils.errors import ConfigError, check_sparsity


@dataclass(frozen=True)
class OneShot(ProportionalLayers):
    """Prune to the target at once.

    Attributes:
        at: Time of the event.

    Example:
        >>> OneShot("5it").plan(0.9, Timeline(total=10))
        (Milestone(step=5, sparsity=0.9),)
    """

    at: TimeLike = BEGIN

    def __post_init__(self) -> None:
        parse_time("at", self.at)

    def times(self) -> tuple[Time, ...]:
        return (parse_time("at", self.at),)

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        step = step_within("at", parse_time("at", self.at), timeline)
        return drop_unchanged([Milestone(step, target)], start)


@dataclass(frozen=True)
class Table(ProportionalLayers):
    """Sparsities at listed times: {"3ep": 0.5, "6ep": 0.9}; the last one is the target.

    Sparsity may rise from row to row, or fall to 0 (all weights come back, at zero).

    Attributes:
        rows: Sparsity at each time, in (0, 1) or 0.

    Example:
        >>> Table({"3ep": 0.5, "6ep": 0.9}).plan(0.9, Timeline(100, steps_per_epoch=10))
        (Milestone(step=30, sparsity=0.5), Milestone(step=60, sparsity=0.9))
    """

    rows: Mapping[TimeLike, float]

    def __post_init__(self) -> None:
        if not isinstance(self.rows, Mapping) or not self.rows:
            raise ConfigError(f"a table needs rows such as {{'3ep': 0.5}}, got {self.rows!r}")
        before = 0.0
        for time, sparsity in self.rows.items():
            parse_time("a table's time", time)
            level = check_sparsity(f"the table's sparsity at {time}", sparsity)
            if 0 < level < before:
                raise ConfigError(
                    f"the table falls from {before} to {level} at {time}: it may rise, or fall "
                    "to 0; to bring back a part, call regrow(...)"
                )
            before = level

    def times(self) -> tuple[Time, ...]:
        return tuple(parse_time("a table's time", time) for time in self.rows)

    @property
    def final(self) -> float:
        """The sparsity of the last row."""
        return list(self.rows.values())[-1]

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        if self.final != target:
            raise ConfigError(
                f"the table ends at sparsity {self.final}, but sparsity={target} was asked for: "
                "make them the same"
            )
        steps = [step_within("a table's time", time, timeline) for time in self.times()]
        if any(a >= b for a, b in itertools.pairwise(steps)):
            raise ConfigError(f"the table's times must follow one another, got steps {steps}")
        return drop_unchanged(list(map(Milestone, steps, self.rows.values())), start)
