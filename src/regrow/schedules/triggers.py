# SPDX-License-Identifier: MIT
"""Conditions on a monitored metric: Drop and Plateau."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from regrow.utils.errors import ConfigError, check_choice, check_count, check_not_text


@dataclass(frozen=True)
class TriggerState:
    """State of a condition between validations."""

    best: float = -math.inf  # since the condition was last met, higher = better
    waited: int = 0  # validations without a better value


@dataclass(frozen=True)
class Drop:
    """Met when the metric falls more than `by` below its best value, which is then reset.

    Args:
        monitor: The metric's name, as logged in validation.
        by: The tolerated loss.
        mode: "max" if higher is better, else "min".

    Raises:
        ConfigError: For an invalid setting.

    Example:
        >>> seen, fell = Drop("val/accuracy", by=0.02).update(0.95, TriggerState(0.98))
        >>> fell, seen.best
        (True, 0.95)
    """

    monitor: str
    by: float = 0.01
    mode: str = "max"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("max", "min"))
        check_not_text("by", self.by)
        if isinstance(self.by, bool) or not isinstance(self.by, Real) or not self.by >= 0:
            raise ConfigError(f"by must be a number of at least 0, got {self.by!r}: write by=0.01")

    def update(self, value: float, seen: TriggerState) -> tuple[TriggerState, bool]:
        """Add one value; return the new state and whether the condition is met. NaN is a drop."""
        value = value if self.mode == "max" else -value
        if value >= seen.best - self.by:
            return TriggerState(max(value, seen.best)), False
        return TriggerState(-math.inf if math.isnan(value) else value), True


@dataclass(frozen=True)
class Plateau:
    """Met when the metric has not improved for `patience` validations; then restarts the count.

    Args:
        monitor: The metric's name, as logged in validation.
        patience: The number of validations in a row.
        mode: "max" if higher is better, else "min".

    Raises:
        ConfigError: For an invalid setting.

    Example:
        >>> Plateau("val/loss", patience=1, mode="min").update(0.5, TriggerState(-0.5))
        (TriggerState(best=-0.5, waited=0), True)
    """

    monitor: str
    patience: int = 3
    mode: str = "max"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("max", "min"))
        check_count("patience", self.patience)

    def update(self, value: float, seen: TriggerState) -> tuple[TriggerState, bool]:
        """Add one value, as `Drop.update`; NaN is no improvement."""
        value = value if self.mode == "max" else -value
        if value > seen.best:
            return TriggerState(value), False
        waited = seen.waited + 1
        if waited < self.patience:
            return TriggerState(seen.best, waited), False
        return TriggerState(seen.best), True
