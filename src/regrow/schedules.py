# SPDX-License-Identifier: MIT
"""Schedules: which sparsity is due when.

A schedule is a frozen dataclass that turns a target and a timeline into a plan, the list of
milestones (step, sparsity) at which masks change. Between milestones masks stand still.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from regrow.errors import ConfigError, check_choice, check_sparsity
from regrow.exponential import Exponential
from regrow.plans import Milestone, Plan, Proportional, Schedule, changes, inside, refuse_long
from regrow.time import Time, TimeLike, Timeline, parse

BEGIN, END, EVERY = 0.2, 0.75, 0.01


@dataclass(frozen=True)
class OneShot(Proportional):
    """Prunes to the target at once.

    Example:
        >>> OneShot("5it").plan(0.9, Timeline(total=10))
        (Milestone(step=5, sparsity=0.9),)
    """

    at: TimeLike = BEGIN

    def __post_init__(self) -> None:
        parse("at", self.at)

    def times(self) -> tuple[Time, ...]:
        return (parse("at", self.at),)

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> Plan:
        step = inside("at", parse("at", self.at), timeline)
        return changes([Milestone(step, target)], start)


@dataclass(frozen=True)
class _Gradual(Proportional):
    begin: TimeLike = BEGIN
    end: TimeLike = END
    every: TimeLike = EVERY

    def __post_init__(self) -> None:
        begin, end, every = self.times()
        if every.amount == 0:
            raise ConfigError(f"every must be above 0, got {self.every}: write '1ep' or '100it'")
        if begin.unit == end.unit and begin.amount > end.amount:
            raise ConfigError(f"begin={begin} lies after end={end}")

    def times(self) -> tuple[Time, ...]:
        return parse("begin", self.begin), parse("end", self.end), parse("every", self.every)

    def curve(self, progress: float) -> float:
        """How much of the way from start to target is done when `progress` of the time is."""
        raise TypeError("a gradual schedule is Linear, Cubic or Cosine")

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> Plan:
        begin, end, every = self.times()
        last = inside("end", end, timeline)
        first = timeline.step(begin, "begin")
        if first > last:
            raise ConfigError(f"begin={begin} (step {first}) lies after end={end} (step {last})")
        length = timeline.length(every)
        refuse_long(every, length, first, last)
        steps = [*timeline.repeat(begin, every, last), last]
        ratios = [(step - first) / (last - first) if last > first else 1.0 for step in steps]
        return changes(
            [
                Milestone(step, target if step == last else start + (target - start) * share)
                for step, share in zip(steps, map(self.curve, ratios), strict=True)
            ],
            start,
        )


class Linear(_Gradual):
    """Equal steps of sparsity from `begin` to `end`: s = s_i + (s_f - s_i) p.

    Example:
        >>> Linear(0, "20it", "10it").plan(0.5, Timeline(total=30))
        (Milestone(step=10, sparsity=0.25), Milestone(step=20, sparsity=0.5))
    """

    def curve(self, progress: float) -> float:
        return progress


class Cubic(_Gradual):
    """Fast at first, slow near the target: s = s_f + (s_i - s_f) (1 - p)^3.

    Source: Zhu and Gupta 2017, eq. 1.

    Example:
        >>> Cubic(0, "20it", "10it").plan(0.8, Timeline(total=30))
        (Milestone(step=10, sparsity=0.7000000000000001), Milestone(step=20, sparsity=0.8))
    """

    def curve(self, progress: float) -> float:
        return 1 - (1 - progress) ** 3


class Cosine(_Gradual):
    """Slow at both ends: s = s_i + (s_f - s_i) (1 - cos(pi p)) / 2.

    Example:
        >>> [round(m.sparsity, 3) for m in Cosine(0, "20it", "5it").plan(0.8, Timeline(30))]
        [0.117, 0.4, 0.683, 0.8]
    """

    def curve(self, progress: float) -> float:
        return (1 - math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Cyclic(Proportional):
    """Sparse and dense phases in turn; weights that come back start at zero.

    From `begin` on, a phase lasts `every`: sparse, dense, sparse, ... At `end` the last phase
    begins: sparse at the target, or dense with `last="dense"` (dense-sparse-dense training).

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
        Linear(self.begin, self.end, self.every)  # the same rules for its times

    def times(self) -> tuple[Time, ...]:
        return parse("begin", self.begin), parse("end", self.end), parse("every", self.every)

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> Plan:
        begin, end, every = self.times()
        final = inside("end", end, timeline)
        refuse_long(every, timeline.length(every), timeline.step(begin, "begin"), final)
        steps = timeline.repeat(begin, every, final)
        if not steps and self.last == "dense":
            raise ConfigError(
                f"begin={begin} (step {final}) is end={end}, where the dense phase begins, so "
                "nothing would ever be pruned: write a later end, or last='sparse'"
            )
        phases = [Milestone(s, 0.0 if k % 2 else target) for k, s in enumerate(steps)]
        ending = Milestone(final, target if self.last == "sparse" else 0.0)
        return changes([*phases, ending], start)


@dataclass(frozen=True)
class ACDC(Cyclic):
    """Compressed and decompressed phases in turn, ending in a long sparse one.

    As `Cyclic`, but the phase before `end` is dense, in place of a sparse one that would stand
    there, so that masks are chosen anew at `end`. By default 10 % of the fit are dense, phases are
    5 %, the last dense one goes from 75 to 85 %: the paper's for 100 epochs of ImageNet.

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

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> Plan:
        begin, end, every = self.times()
        final = inside("end", end, timeline)
        steps = timeline.repeat(begin, every, final)
        if len(steps) < 2:
            raise ConfigError(
                f"between begin={begin} and end={end} there is no room for a sparse and a dense "
                f"phase of every={every}: write a smaller every, or schedule='one_shot'"
            )
        steps = steps[: len(steps) // 2 * 2]
        phases = [Milestone(s, 0.0 if k % 2 else target) for k, s in enumerate(steps)]
        return changes([*phases, Milestone(final, target)], start)


@dataclass(frozen=True)
class Table(Proportional):
    """Sparsities by hand: {"3ep": 0.5, "6ep": 0.9}; the last one is the target.

    Sparsity rises from row to row, or falls to 0 (everything comes back, at zero).

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
            parse("a table's time", time)
            level = check_sparsity(f"the table's sparsity at {time}", sparsity)
            if 0 < level < before:
                raise ConfigError(
                    f"the table falls from {before} to {level} at {time}: it may rise, or fall "
                    "to 0; to bring back a part, call regrow(...)"
                )
            before = level

    def times(self) -> tuple[Time, ...]:
        return tuple(parse("a table's time", time) for time in self.rows)

    @property
    def final(self) -> float:
        """The sparsity of the last row."""
        return list(self.rows.values())[-1]

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> Plan:
        if self.final != target:
            raise ConfigError(
                f"the table ends at sparsity {self.final}, but sparsity={target} was asked for: "
                "make them the same"
            )
        steps = [inside("a table's time", time, timeline) for time in self.times()]
        if any(a >= b for a, b in itertools.pairwise(steps)):
            raise ConfigError(f"the table's times must follow one another, got steps {steps}")
        return changes(list(map(Milestone, steps, self.rows.values())), start)


SCHEDULES: Mapping[str, type[OneShot | Linear | Cubic | Cosine | Exponential | Cyclic]] = {
    "one_shot": OneShot,
    "linear": Linear,
    "cubic": Cubic,
    "cosine": Cosine,
    "exponential": Exponential,
    "cyclic": Cyclic,
    "acdc": ACDC,
}


def make_schedule(
    schedule: str | Schedule,
    begin: TimeLike | None = None,
    end: TimeLike | None = None,
    every: TimeLike | None = None,
) -> Schedule:
    """A schedule from its name and times, or the object itself.

    Raises:
        ConfigError: For an unknown name; for times beside an object, which carries its own; for
            times that the named schedule does not have.

    Example:
        >>> make_schedule("linear", begin="1ep", end="5ep", every="1ep")
        Linear(begin='1ep', end='5ep', every='1ep')
    """
    times = {"begin": begin, "end": end, "every": every}
    given: dict[str, Any] = {key: time for key, time in times.items() if time is not None}
    if not isinstance(schedule, str):
        if isinstance(schedule, type) or not isinstance(schedule, Schedule):
            raise ConfigError(
                f"schedule must be a name ({', '.join(SCHEDULES)}) or a schedule object such as "
                f"Linear('1ep', '5ep', '1ep'), got {schedule!r}"
            )
        if given:
            raise ConfigError(
                f"{', '.join(given)} beside a schedule object: it carries its own times, write "
                f"them in {schedule!r}"
            )
        return schedule
    name = check_choice("schedule", schedule, SCHEDULES)
    if name == "one_shot":
        given = {"at" if key == "begin" else key: value for key, value in given.items()}
    allowed = SCHEDULES[name].__dataclass_fields__
    foreign = [key for key in given if key not in allowed]
    if foreign:
        has = ", ".join("begin" if key == "at" else key for key in allowed)
        raise ConfigError(f"schedule={name!r} has no {' and no '.join(foreign)}: it has {has}")
    return SCHEDULES[name](**given)
