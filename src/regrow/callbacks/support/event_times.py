# SPDX-License-Identifier: MIT
"""Times at which a callback acts within a fit, as steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from regrow.callbacks.core.clock import Clock
from regrow.schedules.time import Time
from regrow.utils.errors import ConfigError


class EventTimesState(TypedDict):
    """Saved times of a fit."""

    steps: list[int]
    done: list[bool]  # which of them have passed
    epochs: dict[int, int]  # the first step of each epoch of the fit, by its number


class EventTimes:
    """The times of one fit, as steps; `on_change` says what a resume does if they moved."""

    def __init__(self, at: tuple[Time, ...], on_change: str) -> None:
        self.at = at
        self.on_change = on_change
        self.clock: Clock | None = None  # within a fit
        self._steps: list[int] = []
        self._done: list[bool] = []  # which of them have passed
        self._epochs: dict[int, int] = {}  # the first step of each, by its number
        self._moves = True  # with the length of epochs

    @property
    def remaining(self) -> list[int]:
        """The steps still to come, in order."""
        return sorted(s for s, done in zip(self._steps, self._done, strict=True) if not done)

    @property
    def _time(self) -> Clock:
        assert self.clock is not None
        return self.clock

    def begin(self) -> None:
        first, epoch = self._time.start_step()
        self._epochs, self._moves = {epoch: first}, True
        self._steps, self._done = self._plan(), [False] * len(self.at)
        self._check_within_fit()

    def begin_epoch(self) -> None:
        """Move the times to come as the length of epochs may have changed; see `PruningSession`."""
        self._epochs.setdefault(self._time.position()[1], self._time.current_step())
        if self._moves:
            self._replan()

    def resume(self, state: Mapping[str, Any]) -> None:
        self._steps, self._done = list(state["steps"]), list(state["done"])
        self._epochs, self._moves = dict(state["epochs"]), True
        stored = self.remaining
        self._replan()
        if self.on_change == "refuse" and stored != self.remaining:
            raise ConfigError(
                f"the checkpoint regrows at steps {stored}, while now {self.remaining} would be "
                "planned (other max_epochs, batch size, ranks or settings?): restore them, or "
                "write on_change='keep' (steps as in the checkpoint) or on_change='stretch' (as "
                "now)"
            )
        if self.on_change == "keep" and stored != self.remaining:
            self._steps, self._moves = list(state["steps"]), False
        self._check_within_fit()

    def due(self) -> int | None:
        """The last time that has come, if it was not marked done."""
        now = self._time.current_step()
        return max((step for step in self.remaining if step <= now), default=None)

    def mark_done(self, step: int) -> None:
        """Mark a time, and those before it, as done."""
        self._done = [done or s <= step for s, done in zip(self._steps, self._done, strict=True)]

    def why_missed(self) -> str:
        """The likely cause why the fit ended before the next time; see `Clock.why_missed`."""
        return self._time.why_missed(self.remaining[0], self._epochs)

    def state_dict(self) -> EventTimesState:
        epochs = dict(self._epochs)
        return {"steps": list(self._steps), "done": list(self._done), "epochs": epochs}

    def _replan(self) -> None:
        steps = zip(self._steps, self._plan(), self._done, strict=True)
        self._steps = [before if done else now for before, now, done in steps]

    def _plan(self) -> list[int]:
        if self._time.dry_run:
            return [next(iter(self._epochs.values()))] * len(self.at)
        timeline = self._time.timeline(self._epochs)
        return [timeline.step(time, "at") for time in self.at]

    def _check_within_fit(self) -> None:
        timeline, ahead = self._time.timeline(self._epochs), self.remaining
        end = timeline.end
        if end is not None and ahead and ahead[-1] >= end > timeline.start:
            raise ConfigError(
                f"at={', '.join(map(str, self.at))}: step {ahead[-1]} is never reached, the fit "
                f"ends before step {end}: train longer, or write an earlier time"
            )
