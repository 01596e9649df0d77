# SPDX-License-Identifier: MIT
"""Mean and spread of a number over the seeds of one operating point."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """A mean, and how far single values lie from it.

    Attributes:
        mean: The arithmetic mean.
        deviation: Sample standard deviation, sqrt(sum((x - mean)^2) / (n - 1)); None for one value.
        n: How many values.
    """

    mean: float
    deviation: float | None
    n: int

    def overlaps(self, other: Spread) -> bool | None:
        """Whether the intervals mean +- deviation share a point; None where one has no interval."""
        if self.deviation is None or other.deviation is None:
            return None
        return abs(self.mean - other.mean) <= self.deviation + other.deviation


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation and number of values.

    Raises:
        ValueError: For no values.

    Example:
        >>> spread([1, 2, 3])
        Spread(mean=2.0, deviation=1.0, n=3)
        >>> spread([0.9])
        Spread(mean=0.9, deviation=None, n=1)
    """
    if not values:
        raise ValueError("no values")
    deviation = float(statistics.stdev(values)) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))
