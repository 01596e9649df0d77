# SPDX-License-Identifier: MIT
"""The milestones that have happened, and how a fit resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypedDict

from regrow.schedules.base import Milestone, PruningPlan
from regrow.schedules.time import Time, Timeline
from regrow.utils.errors import ConfigError


class ProgressStateDict(TypedDict):
    """State of a `Progress`, see its attributes."""

    plan: list[list[float]]  # [step, sparsity] of each milestone
    fired: int  # n_done
    start: float
    epochs: dict[int, int]
    led: bool  # adaptive


@dataclass
class Progress:
    """A plan and the number of its milestones that have happened."""

    plan: PruningPlan = ()
    n_done: int = 0
    start: float = 0.0  # the sparsity at the start of the plan
    # the first step of each epoch that has begun since, by number; empty before any fit
    epochs: dict[int, int] = field(default_factory=dict)
    # whether an accuracy budget delays events, which then happen one by one, and changes later ones
    adaptive: bool = False

    @property
    def started(self) -> bool:
        """Whether a fit has been planned."""
        return bool(self.epochs)

    @property
    def first(self) -> int:
        """The step at the start of the plan."""
        return next(iter(self.epochs.values()), 0)

    @property
    def all_done(self) -> bool:
        """Whether all milestones have happened."""
        return self.n_done >= len(self.plan)

    @property
    def remaining(self) -> PruningPlan:
        """The milestones still to come."""
        return self.plan[self.n_done :]

    @property
    def sparse(self) -> PruningPlan:
        """The milestones that prune; at the others all weights come back."""
        return tuple(milestone for milestone in self.plan if milestone.sparsity)

    @property
    def pruned(self) -> bool:
        """Whether all milestones that prune have happened."""
        return not any(milestone.sparsity for milestone in self.remaining)

    def due(self, now: int, timeline: Timeline | None = None) -> Milestone | None:
        """Return the milestone due at step `now`; the last of several, the first if adaptive.

        With a timeline, milestones of later epochs wait for them, even if the present epoch has
        more steps than in it.
        """
        due = [milestone for milestone in self.remaining if milestone.step <= now]
        if due and timeline is not None:
            end = timeline.step(Time(len(self.epochs), "ep"))  # of the present epoch
            due = [milestone for milestone in due if milestone.step < end]
        return None if not due else due[0] if self.adaptive else due[-1]

    def mark_done(self, milestone: Milestone) -> None:
        """Mark a milestone, and those before it, as happened."""
        self.n_done = self.plan.index(milestone, self.n_done) + 1

    def set_next(self, step: int, sparsity: float | None) -> None:
        """Replace the remaining milestones by one, or by none if `sparsity` is None."""
        remaining = () if sparsity is None else (Milestone(step, sparsity),)
        self.plan = self.plan[: self.n_done] + remaining

    def state_dict(self) -> ProgressStateDict:
        return {
            "plan": [[int(step), float(sparsity)] for step, sparsity in self.plan],
            "fired": self.n_done,
            "start": self.start,
            "epochs": dict(self.epochs),
            "led": self.adaptive,
        }

    def load_state_dict(self, state: ProgressStateDict) -> None:
        self.plan = tuple(Milestone(int(step), float(s)) for step, s in state["plan"])
        self.n_done, self.start = int(state["fired"]), float(state["start"])
        self.epochs, self.adaptive = dict(state["epochs"]), bool(state["led"])

    def resume(
        self,
        resolve: Callable[[Timeline, float], PruningPlan],
        timeline: Timeline,
        now: int,
        on_change: str,
    ) -> bool:
        """Resume from a checkpoint at step `now`; its steps take precedence where possible.

        `resolve` makes a plan from a timeline and a starting sparsity, `on_change` is "keep" (the
        stored steps) or see `resumed_plan`. Returns whether the plan is that of the timeline, not
        one of other settings that was kept.
        """
        if self.all_done or self.adaptive:
            return True
        keep = on_change == "keep"
        how = "stretch" if keep else on_change
        try:
            planned = resolve(timeline, self.start)
            moved = resumed_plan(self.plan, planned, self.n_done, now, how)
        except ConfigError:
            if not keep:
                raise
            moved = ()
        follows = not keep or moved == self.plan
        self.plan = moved if follows else self.plan
        if timeline.end is not None and not self.all_done and self.plan[-1].step >= timeline.end:
            raise ConfigError(
                f"the checkpoint plans an event at step {self.plan[-1].step}, but the fit now ends "
                f"before step {timeline.end}: train longer, or write on_change='stretch'"
            )
        return follows

    def replan(
        self, resolve: Callable[[Timeline, float], PruningPlan], timeline: Timeline, now: int
    ) -> None:
        """Move the remaining milestones, because the length of epochs has changed."""
        try:
            planned = resolve(timeline, self.start)
        except ConfigError as error:
            raise ConfigError(
                "epochs have other lengths than planned, and the events to come cannot be planned "
                f"anew: {error}"
            ) from error
        self.plan = resumed_plan(self.plan, planned, self.n_done, now, "stretch")


def resumed_plan(
    stored: PruningPlan, planned: PruningPlan, fired: int, now: int, on_change: str
) -> PruningPlan:
    """Combine the plan of a checkpoint, of which `fired` have happened, with the present one.

    If the remaining milestones differ, `on_change` is "refuse" (an error) or "stretch" (the planned
    steps).
    """
    if planned == stored or fired == len(stored):
        return stored
    reached = stored[fired - 1].sparsity if fired else 0.0
    if len(planned) == len(stored) and len({milestone.sparsity for milestone in planned}) > 1:
        remaining = planned[fired:]
    elif any(a.sparsity >= b.sparsity for a, b in pairwise(planned)):
        passed = sum(milestone.step < now for milestone in planned)
        passed -= bool(passed and planned[passed - 1].sparsity != reached)  # it comes now
        remaining = planned[passed:]
    else:
        remaining = tuple(milestone for milestone in planned if milestone.sparsity > reached)
    if remaining == stored[fired:]:
        return stored
    if on_change == "refuse":
        raise ConfigError(
            f"the events still to come are not those of the checkpoint, which plans "
            f"{_describe(stored[fired:])}, while now {_describe(planned)} would be planned (other "
            "max_epochs, batch size, ranks or settings?): restore them, or write on_change='keep' "
            "(steps as in the checkpoint) or on_change='stretch' (steps as now)"
        )
    return stored[:fired] + (remaining or tuple(Milestone(now, m.sparsity) for m in planned[-1:]))


def _describe(plan: PruningPlan) -> str:
    if not plan:
        return "no event"
    first, last = plan[0], plan[-1]
    return (
        f"{len(plan)} from step {first.step} (sparsity {first.sparsity:.4g}) to step {last.step} "
        f"(sparsity {last.sparsity:.4g})"
    )
