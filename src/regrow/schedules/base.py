# SPDX-License-Identifier: MIT
"""Milestone, Schedule protocol, shared checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from regrow.schedules.time import Time, Timeline
from regrow.utils.errors import ConfigError


class Milestone(NamedTuple):
    """One planned change of masks."""

    step: int
    sparsity: float


PruningPlan = tuple[Milestone, ...]


@runtime_checkable
class Schedule(Protocol):
    """Anything that plans milestones."""

    def times(self) -> tuple[Time, ...]:
        """The times it was given, so that a caller can see in which unit it counts."""
        ...

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        """The milestones from sparsity `start` to `target`."""
        ...

    def layer_sparsity(self, sparsity: float, target: float, own: float) -> float:
        """What a layer bound for `own` has when the others, bound for `target`, have `sparsity`."""
        ...


def layer_sparsities(
    schedule: Schedule,
    sparsity: float,
    target: float,
    own: Mapping[str, float],
    densities: Mapping[str, float],
) -> dict[str, float]:
    """What layers with a target of their own have at a milestone; if it is not 0, no less than now.

    Example:
        >>> layer_sparsities(ProportionalLayers(), 0.4, 0.8, {"fc": 0.5}, {"fc": 1.0})
        {'fc': 0.25}
    """
    return {
        name: max(
            schedule.layer_sparsity(sparsity, target, final),
            1 - densities[name] if sparsity else 0.0,  # changed by hand, maybe
        )
        for name, final in own.items()
    }


def sparsity_at(plan: Sequence[Milestone], step: int, start: float = 0.0) -> float:
    """The sparsity a plan asks for at `step`.

    Example:
        >>> plan = (Milestone(5, 0.9),)
        >>> [sparsity_at(plan, step) for step in (4, 5, 9)]
        [0.0, 0.9, 0.9]
    """
    due = [milestone.sparsity for milestone in plan if milestone.step <= step]
    return due[-1] if due else start


class ProportionalLayers:
    """A layer with a target of its own moves in proportion to the others."""

    def layer_sparsity(self, sparsity: float, target: float, own: float) -> float:
        return own * sparsity / target if target else own


def step_within(what: str, time: Time, timeline: Timeline) -> int:
    """The step of `time`, which must leave at least that step to run."""
    step = timeline.step(time, what)
    if timeline.end is not None and step >= timeline.end:
        raise ConfigError(
            f"{what}={time} is step {step}, but the fit ends before step {timeline.end}: "
            "the event would never come; write an earlier time, or train longer"
        )
    return step


def check_interval(every: Time, length: int, first: int, last: int) -> None:
    """Refuses a time between events that is longer than the time for all of them."""
    slack = 1 if every.unit == "fit" else 0  # 0.4 + 0.3 may be rounded to a step past 0.7
    if first < last < first + length - slack:
        raise ConfigError(
            f"every={every} ({length} steps) is longer than begin to end ({last - first} "
            "steps), nothing would happen between: write a smaller every, or schedule='one_shot'"
        )


def drop_unchanged(milestones: list[Milestone], start: float) -> PruningPlan:
    """Leaves out the milestones at which nothing changes."""
    befores = [start, *(milestone.sparsity for milestone in milestones)]
    return tuple(m for m, before in zip(milestones, befores, strict=False) if m.sparsity != before)


BEGIN, END, EVERY = 0.2, 0.75, 0.01
