# SPDX-License-Identifier: MIT
"""The Pareto front: what nothing else beats in both cost and value."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Which points are not dominated.

    Point j dominates i if cost_j <= cost_i and value_j >= value_i, one of them strictly. Equal
    points do not dominate each other. O(n log n).

    Args:
        costs: Less is better.
        values: More is better.

    Returns:
        One truth value a point.

    Raises:
        ValueError: For NaN, or where the lengths differ.

    Example:
        >>> front([1, 2, 3, 3], [0.8, 0.9, 0.85, 0.9])
        [True, True, False, False]
    """
    points = list(zip(costs, values, strict=True))
    if any(math.isnan(number) for point in points for number in point):
        raise ValueError("a cost or a value is NaN")
    kept = [False] * len(points)
    best = None  # the last point of the front so far: the most valuable, at its least cost
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if best is None or points[index][1] > best[1] or points[index] == best:
            best, kept[index] = points[index], True
    return kept
