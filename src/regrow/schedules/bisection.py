# SPDX-License-Identifier: MIT
"""Search for the highest sparsity within a tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Bisection:
    """Follows a schedule until a sparsity fails, then halves the gap until it is narrow.

    Attributes:
        resolution: The gap between held and failed at which the search ends.
        held: The highest sparsity that stayed within the budget.
        failed: The lowest that did not; None while none has.

    Example:
        >>> search = Bisection(resolution=0.05)
        >>> search.accept(0.5); search.reject(0.7); search.next()
        0.6
        >>> search.reject(0.6); search.next()
        0.55
        >>> search.accept(0.55); search.next() is None
        True
    """

    resolution: float
    highest_accepted: float = 0.0
    lowest_rejected: float | None = None

    def accept(self, sparsity: float) -> None:
        """This sparsity stayed within the budget."""
        self.highest_accepted = max(self.highest_accepted, sparsity)

    def reject(self, sparsity: float) -> None:
        """This sparsity lost too much."""
        self.lowest_rejected = (
            sparsity if self.lowest_rejected is None else min(self.lowest_rejected, sparsity)
        )

    def next(self) -> float | None:
        """The sparsity to try next; None where the search has ended, or has not begun."""
        if (
            self.lowest_rejected is None
            or self.lowest_rejected - self.highest_accepted <= self.resolution * (1 + 1e-9)
        ):
            return None
        return round((self.highest_accepted + self.lowest_rejected) / 2, 12)

    def reason(self, waiting: float | None = None) -> str:
        """Why the search ended where it did, for people.

        Args:
            waiting: The sparsity that the fit's end left without a judgement.

        Example:
            >>> search = Bisection(resolution=0.05, highest_accepted=0.5, lowest_rejected=0.54)
            >>> search.reason()
            'sparsity 0.5 held, 0.54 lost too much: no further apart than resolution=0.05'
            >>> search.reason(waiting=0.52)
            'the fit ended before sparsity 0.52 was judged: sparsity 0.5 held, 0.54 lost too much'
        """
        found = (
            f"sparsity {self.highest_accepted:.4g} held"
            if self.highest_accepted
            else "no event held"
        )
        if self.lowest_rejected is not None:
            found += f", {self.lowest_rejected:.4g} lost too much"
        if waiting is not None:
            return f"the fit ended before sparsity {waiting:.4g} was judged: {found}"
        if self.lowest_rejected is None:
            return f"{found}, and so did every event before it"
        return f"{found}: no further apart than resolution={self.resolution:g}"

    def state_dict(self) -> dict[str, Any]:
        return {"held": self.highest_accepted, "failed": self.lowest_rejected}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.highest_accepted, self.lowest_rejected = state["held"], state["failed"]
