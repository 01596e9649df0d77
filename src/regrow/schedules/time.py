# SPDX-License-Identifier: MIT
"""Times with units: "3ep", "500it" or 0.25 of the fit, resolved to optimizer steps.

A step is an optimizer step as Lightning's `trainer.global_step` counts it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

from regrow.utils.errors import ConfigError, check_not_text

Unit = Literal["ep", "it", "fit"]
TimeLike = float | str  # in this order, because command lines try one after the other

_PATTERN = re.compile(r"\s*(\d+)\s*(ep|it)\s*")


@dataclass(frozen=True)
class Time:
    """An amount of training: whole epochs, whole steps, or a fraction of the fit."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        return f"{self.amount:g}" if self.unit == "fit" else f"{int(self.amount)}{self.unit}"


def parse_time(what: str, given: object) -> Time:
    """Parse "3ep" (epochs), "500it" (optimizer steps), a float in [0, 1] (of the fit), or 0.

    A bare int other than 0 is refused: it could mean epochs or steps.
    """
    if isinstance(given, str):
        match = _PATTERN.fullmatch(given)
        if match:
            return Time(int(match[1]), "ep" if match[2] == "ep" else "it")
        if re.fullmatch(r"\s*(0|0?\.\d+|1\.0*)\s*", given):  # else a unit is missing
            check_not_text(what, given)
    elif isinstance(given, Real) and not isinstance(given, bool):
        value = float(given)
        if value == 0:
            return Time(0, "it")
        if value == 1 and isinstance(given, int):
            raise ConfigError(f"{what}=1 has no unit: write '1ep', '1it' or 1.0 (the whole fit)")
        if 0 < value <= 1:
            return Time(value, "fit")
        if value > 1 and value.is_integer():
            raise ConfigError(
                f"{what}={given} has no unit: write '{int(value)}ep' or '{int(value)}it'"
            )
    raise ConfigError(
        f"{what} must be a time such as '3ep' (epochs), '500it' (optimizer steps) or "
        f"0.25 (of the fit), got {given!r}"
    )


@dataclass(frozen=True)
class Timeline:
    """The steps of a fit and of its epochs.

    Attributes:
        total: Steps of the whole fit; None if unknown.
        steps_per_epoch: Steps of an epoch; None if unknown. Pairs (first epoch, steps per epoch
            from there on) where epochs differ in length.
        start: The first step of the fit; epochs and fractions count from there.
        estimated: Whether `total` may still change, because epochs differ in length.
    """

    total: int | None
    steps_per_epoch: int | tuple[tuple[int, int], ...] | None = None
    start: int = 0
    estimated: bool = field(default=False, compare=False)

    @property
    def end(self) -> int | None:
        """The step after the last one; None if unknown or estimated."""
        return None if self.total is None or self.estimated else self.start + self.total

    def step(self, time: Time, what: str = "time") -> int:
        """Convert a time to a step."""
        if time.unit == "it":
            return self.start + int(time.amount)
        if time.unit == "ep":
            return self.start + round(self._steps(time.amount, what))
        if self.total is None:
            raise ConfigError(
                f"{what}={time} is a fraction of a fit whose length is unknown: write '3ep' or "
                "'500it', or give the Trainer max_steps (or max_epochs and a sized loader)"
            )
        return self.start + round(time.amount * self.total)

    def _steps(self, epochs: float, what: str = "time") -> float:
        """The steps of a number of epochs, not a whole number in general."""
        if self.steps_per_epoch is None:
            if epochs == 0:
                return 0
            raise ConfigError(
                f"{what}={epochs:g}ep needs to know how many steps an epoch has, and the training "
                "loader has no length: write '500it', or give the Trainer limit_train_batches"
            )
        spans = self._spans
        afters = [first for first, _ in spans[1:]] + [epochs]
        return sum(
            max(0, min(after, epochs) - first) * steps
            for (first, steps), after in zip(spans, afters, strict=True)
        )

    @property
    def _spans(self) -> tuple[tuple[int, int], ...]:
        given = self.steps_per_epoch or ()
        return ((0, given),) if isinstance(given, int) else given

    def epochs(self, step: int) -> float:
        """Convert a step to a number of epochs since the fit's start; the inverse of `step`."""
        done = step - self.start
        first, length = [span for span in self._spans if self._steps(span[0]) <= done][-1]
        return first + (done - self._steps(first)) / length

    def repeat(self, begin: Time, every: Time, end: int) -> list[int]:
        """Return the steps begin, begin + every, begin + 2 every, ... below `end`."""
        first, steps = self.step(begin, "begin"), list[int]()
        while (step := self.after(first, every, len(steps))) < end:
            steps.append(step)
        return steps

    def after(self, step: int, every: Time, count: int = 1) -> int:
        """Return the step that lies `count` times `every` after a step.

        A number of epochs leads to the same place within a later epoch: from an epoch's beginning
        to another's, even if epochs differ in length.
        """
        length = max(1, self.step(every, "every") - self.start)
        if every.unit != "ep":
            return step + count * length
        return self.start + round(self._steps(self.epochs(step) + count * every.amount))

    def length(self, every: Time, since: int | None = None) -> int:
        """Return the number of steps of `every` from a step on, by default the fit's first."""
        since = self.start if since is None else since
        return self.after(since, every) - since
