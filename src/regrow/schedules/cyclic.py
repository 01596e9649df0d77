# SPDX-License-Identifier: MIT
"""Alternating sparse and dense phases: Cyclic (DSD) and ACDC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regrow.schedules.base import (
    BEGIN,
    END,
    Milestone,
    ProportionalLayers,
    PruningPlan,
    check_interval,
    drop_unchanged,
    parse_interval,
    step_within,
)
from regrow.schedules.time import Time, TimeLike, Timeline
from regrow.utils.errors import ConfigError, check_choice


@dataclass(frozen=True)
class Cyclic(ProportionalLayers):
    """Alternate sparse and dense phases; weights that come back start at zero.

    From `begin` on, phases of length `every` are sparse, dense, sparse, ... The last phase starts
    at `end`: sparse at the target, or dense with `last="dense"` (dense-sparse-dense training).

    Attributes:
        begin: Time of the first sparse phase.
        end: Time of the last phase.
        every: Length of the phases before it.
        last: "sparse" or "dense".

    Source: Han et al. 2017 (DSD).

    Example:
        >>> plan = Cyclic("2it", "6it", "2it").plan(0.5, Timeline(total=10))
        >>> [(m.step, m.sparsity) for m in plan]
        [(2, 0.5), (4, 0.0), (6, 0.5)]
    """

    begin: TimeLike = BEGIN
    end: TimeLike = END
    every: TimeLike = 0.1
    last: Literal["sparse", "dense"] = "sparse"

    def __post_init__(self) -> None:
        check_choice("last", self.last, ("sparse", "dense"))
        self.times()

    def times(self) -> tuple[Time, ...]:
        return parse_interval(self.begin, self.end, self.every)

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        begin, end, every = self.times()
        final = step_within("end", end, timeline)
        first = timeline.step(begin, "begin")
        check_interval(every, timeline.length(every, first), first, final)
        steps = timeline.repeat(begin, every, final)
        if not steps and self.last == "dense":
            raise ConfigError(
                f"begin={begin} (step {final}) is end={end}, where the dense phase begins, so "
                "nothing would ever be pruned: write a later end, or last='sparse'"
            )
        phases = [Milestone(s, 0.0 if k % 2 else target) for k, s in enumerate(steps)]
        ending = Milestone(final, target if self.last == "sparse" else 0.0)
        return drop_unchanged([*phases, ending], start)


@dataclass(frozen=True)
class ACDC(Cyclic):
    """Alternate compressed and decompressed phases, ending in a long sparse one.

    As `Cyclic`, but the phase before `end` is always dense, so that new masks are chosen at `end`.
    By default the first 10 % of the fit are dense, phases last 5 %, the last dense one from 75 to
    85 %, as in the paper for 100 epochs of ImageNet.

    Attributes:
        begin: Time of the first sparse phase.
        end: Time of the last one.
        every: Length of the phases before it.

    Source: Peste et al. 2021 (AC/DC), arXiv:2106.12379.

    Example:
        >>> [step for step, sparsity in ACDC().plan(0.9, Timeline(total=100)) if sparsity]
        [10, 20, 30, 40, 50, 60, 70, 85]
    """

    begin: TimeLike = 0.1
    end: TimeLike = 0.85
    every: TimeLike = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last != "sparse":
            raise ConfigError("AC/DC ends sparse: write Cyclic(last='dense') to end dense")

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        begin, end, every = self.times()
        final = step_within("end", end, timeline)
        steps = timeline.repeat(begin, every, final)
        if len(steps) < 2:
            raise ConfigError(
                f"between begin={begin} and end={end} there is no room for a sparse and a dense "
                f"phase of every={every}: write a smaller every, or schedule='one_shot'"
            )
        steps = steps[: len(steps) // 2 * 2]
        phases = [Milestone(s, 0.0 if k % 2 else target) for k, s in enumerate(steps)]
        return drop_unchanged([*phases, Milestone(final, target)], start)
