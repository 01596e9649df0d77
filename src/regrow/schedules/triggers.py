# SPDX-License-Identifier: MIT
"""Drop, Plateau on a monitored metric."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from regrow.utils.errors import ConfigError, check_choice, check_count


@dataclass(frozen=True)
class TriggerState:
    """What a condition remembers between validations.

    Attributes:
        best: The best value since the condition last held, higher = better.
        waited: Validations without a better one.
    """

    best: float = -math.inf
    waited: int = 0


@dataclass(frozen=True)
class Drop:
    """Holds when the metric falls more than `by` below its best; then counts from there on.

    Args:
        monitor: The metric's name, as logged in validation.
        by: How much it may lose.
        mode: "max" if higher is better, else "min".

    Raises:
        ConfigError: For a setting that cannot be meant.

    Example:
        >>> seen, fell = Drop("val/accuracy", by=0.02).update(0.95, TriggerState(best=0.98))
        >>> fell, seen.best
        (True, 0.95)
    """

    monitor: str
    by: float = 0.01
    mode: str = "max"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("max", "min"))
        if isinstance(self.by, bool) or not isinstance(self.by, Real) or not self.by >= 0:
            raise ConfigError(f"by must be a number of at least 0, got {self.by!r}: write by=0.01")

    def update(self, value: float, seen: TriggerState) -> tuple[TriggerState, bool]:
        """Takes in one value; NaN is a drop."""
        value = value if self.mode == "max" else -value
        if value >= seen.best - self.by:
            return TriggerState(max(value, seen.best)), False
        return TriggerState(-math.inf if math.isnan(value) else value), True


@dataclass(frozen=True)
class Plateau:
    """Holds when the metric has not improved for `patience` validations; then counts anew.

    Args:
        monitor: The metric's name, as logged in validation.
        patience: How many validations in a row.
        mode: "max" if higher is better, else "min".

    Raises:
        ConfigError: For a setting that cannot be meant.

    Example:
        >>> Plateau("val/loss", patience=1, mode="min").update(0.5, TriggerState(best=-0.5))
        (TriggerState(best=-0.5, waited=0), True)
    """

    monitor: str
    patience: int = 3
    mode: str = "max"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("max", "min"))
        check_count("patience", self.patience)

    def update(self, value: float, seen: TriggerState) -> tuple[TriggerState, bool]:
        """Takes in one value; NaN is no improvement."""
        value = value if self.mode == "max" else -value
        if value > seen.best:
            return TriggerState(value), False
        waited = seen.waited + 1
        if waited < self.patience:
            return TriggerState(seen.best, waited), False
        return TriggerState(seen.best), True
