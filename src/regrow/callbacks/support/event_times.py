# SPDX-License-Identifier: MIT
"""Times at which a callback acts within a fit, as steps."""

from __future__ import annotations

from typing import TypedDict

from regrow.callbacks.core.clock import Clock
from regrow.schedules.time import Time
from regrow.utils.errors import ConfigError


class EventTimesState(TypedDict):
    """Saved times of a fit.

    Attributes:
        steps: All times, as steps.
        kept: How many of them have passed.
        first: The fit's first step.
        epoch: The fit's first epoch.
    """

    steps: list[int]
    kept: int
    first: int
    epoch: int


class EventTimes:
    """Times of one fit, as steps.

    Args:
        at: The times.
        on_change: What a resume does if the remaining times would now be other steps: "refuse"
            (raise), "keep" their steps, or "stretch" them.

    Attributes:
        steps: All times as steps, in order, each once.
        n_done: How many have passed.
    """

    def __init__(self, at: tuple[Time, ...], on_change: str) -> None:
        self.at = at
        self.on_change = on_change
        self.steps: list[int] = []
        self.n_done = 0
        self._first, self._epoch = 0, 0

    def begin(self, clock: Clock) -> None:
        """Resolve the times of a fit that does not resume.

        Raises:
            ConfigError: If the fit ends before the last of them.
        """
        self.n_done, (self._first, self._epoch) = 0, clock.start_step()
        self.steps = self._plan(clock)
        self._check_within_fit(clock)

    def resume(self, clock: Clock, state: EventTimesState) -> None:
        """Load the state of an interrupted fit.

        Raises:
            ConfigError: If remaining times have moved and `on_change` is "refuse", or the fit ends
                before the last of them.
        """
        self._first, self._epoch = state["first"], state["epoch"]
        self.n_done, self.steps = state["kept"], list(state["steps"])
        stored, planned = self.steps[self.n_done :], self._plan(clock)[self.n_done :]
        if stored and stored != planned and self.on_change == "refuse":
            raise ConfigError(
                f"the checkpoint regrows at steps {stored}, while now {planned} would be planned "
                "(other max_epochs, batch size, ranks or settings?): restore them, or write "
                "on_change='keep' (steps as in the checkpoint) or on_change='stretch' (as now)"
            )
        if stored and self.on_change == "stretch":
            self.steps[self.n_done :] = planned
        self._check_within_fit(clock)

    def due(self, now: int) -> int | None:
        """The last time that step `now` has reached, if it was not marked done."""
        passed = [step for step in self.steps if step <= now]
        return passed[-1] if len(passed) > self.n_done else None

    def mark_done(self, step: int) -> None:
        """Mark a time, and those before it, as done."""
        self.n_done = self.steps.index(step) + 1

    def state_dict(self) -> EventTimesState:
        """The times and how many have passed."""
        return {
            "steps": list(self.steps),
            "kept": self.n_done,
            "first": self._first,
            "epoch": self._epoch,
        }

    def _plan(self, clock: Clock) -> list[int]:
        if clock.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return [self._first][: len(self.at)]
        timeline = clock.timeline(self._first, self._epoch)
        return sorted({timeline.step(time, "at") for time in self.at})

    def _check_within_fit(self, clock: Clock) -> None:
        end = clock.timeline(self._first, self._epoch).end
        ahead = self.steps[self.n_done :]
        if end is not None and ahead and ahead[-1] >= end > self._first:
            raise ConfigError(
                f"at={', '.join(map(str, self.at))}: step {ahead[-1]} is never reached, the fit "
                f"ends before step {end}: train longer, or write an earlier time"
            )
