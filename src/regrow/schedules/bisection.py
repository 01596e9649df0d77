# SPDX-License-Identifier: MIT
"""Bisection for the highest sparsity that stays within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


class BisectionStateDict(TypedDict):
    """State of a `Bisection`."""

    held: float  # the highest accepted sparsity
    failed: float | None  # the lowest rejected one


@dataclass
class Bisection:
    """Bisects the gap between the highest accepted and the lowest rejected sparsity."""

    resolution: float  # the gap at which the search ends
    highest_accepted: float = 0.0
    lowest_rejected: float | None = None

    def accept(self, sparsity: float) -> None:
        """Record a sparsity that stayed within the budget."""
        self.highest_accepted = max(self.highest_accepted, sparsity)

    def reject(self, sparsity: float) -> None:
        """Record a sparsity that lost too much."""
        lowest = self.lowest_rejected
        self.lowest_rejected = sparsity if lowest is None else min(lowest, sparsity)

    def next(self) -> float | None:
        """Return the sparsity to try next; None before the first rejection and at the end."""
        low, high = self.highest_accepted, self.lowest_rejected
        if high is None or high - low <= self.resolution * (1 + 1e-9):
            return None
        return round((low + high) / 2, 12)

    def reason(self, waiting: float | None = None) -> str:
        """Explain to the user why the search ended; `waiting` is a sparsity never judged."""
        accepted = self.highest_accepted
        text = f"sparsity {accepted:.4g} held" if accepted else "no event held"
        if self.lowest_rejected is not None:
            text += f", {self.lowest_rejected:.4g} lost too much"
        if waiting is not None:
            return f"the fit ended before sparsity {waiting:.4g} was judged: {text}"
        if self.lowest_rejected is None:
            return f"{text}, and so did every event before it"
        return f"{text}: no further apart than resolution={self.resolution:g}"

    def state_dict(self) -> BisectionStateDict:
        return {"held": self.highest_accepted, "failed": self.lowest_rejected}

    def load_state_dict(self, state: BisectionStateDict) -> None:
        self.highest_accepted, self.lowest_rejected = state["held"], state["failed"]
