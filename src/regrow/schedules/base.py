# SPDX-License-Identifier: MIT
"""Milestone, Schedule protocol, shared checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from regrow.schedules.time import Time, TimeLike, Timeline, parse_time
from regrow.utils.errors import ConfigError


class Milestone(NamedTuple):
    """A planned change of masks: the optimizer step and the sparsity from there on."""

    step: int
    sparsity: float


PruningPlan = tuple[Milestone, ...]


@runtime_checkable
class Schedule(Protocol):
    """Turns a target sparsity into milestones."""

    def times(self) -> tuple[Time, ...]:
        """Return its time settings, so that callers can check their units."""
        ...

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        """Compute the milestones from sparsity `start` to `target`."""
        ...

    def layer_sparsity(self, sparsity: float, target: float, own: float) -> float:
        """Sparsity of a layer with target `own` when the others, of `target`, are at `sparsity`."""
        ...


def layer_sparsities(
    schedule: Schedule,
    sparsity: float,
    target: float,
    own: Mapping[str, float],
    densities: Mapping[str, float],
) -> dict[str, float]:
    """Sparsities of layers with separate targets at a milestone, not below the present ones."""
    return {
        name: max(
            schedule.layer_sparsity(sparsity, target, final),
            1 - densities[name] if sparsity else 0.0,  # it may have been pruned manually
        )
        for name, final in own.items()
    }


def parse_interval(begin: TimeLike, end: TimeLike, every: TimeLike) -> tuple[Time, Time, Time]:
    """Parse and check the times of regular events."""
    first, last = parse_time("begin", begin), parse_time("end", end)
    interval = parse_time("every", every)
    if interval.amount == 0:
        raise ConfigError(f"every must be above 0, got {every}: write '1ep' or '100it'")
    if first.unit == last.unit and first.amount > last.amount:
        raise ConfigError(f"begin={first} lies after end={last}")
    return first, last, interval


class ProportionalLayers:
    """A layer with a separate target is pruned in proportion to the others."""

    def layer_sparsity(self, sparsity: float, target: float, own: float) -> float:
        return own * sparsity / target if target else own


def step_within(what: str, time: Time, timeline: Timeline) -> int:
    """Return the step of `time`, which must lie before the end of the fit."""
    step = timeline.step(time, what)
    if timeline.end is not None and step >= timeline.end:
        raise ConfigError(
            f"{what}={time} is step {step}, but the fit ends before step {timeline.end}: "
            "the event would never come; write an earlier time, or train longer"
        )
    return step


def check_interval(every: Time, length: int, first: int, last: int) -> None:
    """Check that the time between events is not longer than begin to end."""
    slack = 1 if every.unit == "fit" else 0  # 0.4 + 0.3 may be rounded to a step past 0.7
    if first < last < first + length - slack:
        raise ConfigError(
            f"every={every} ({length} steps) is longer than begin to end ({last - first} "
            "steps), nothing would happen between: write a smaller every, or schedule='one_shot'"
        )


def drop_unchanged(milestones: list[Milestone], start: float) -> PruningPlan:
    """Remove the milestones at which the sparsity does not change."""
    earlier = [start, *(milestone.sparsity for milestone in milestones)]
    return tuple(m for m, before in zip(milestones, earlier, strict=False) if m.sparsity != before)


BEGIN, END, EVERY = 0.2, 0.75, 0.01
