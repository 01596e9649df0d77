# SPDX-License-Identifier: MIT
"""Mean, spread, Pareto front."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from regrow.report.run_identity import control_key, method_key, point_key
from regrow.report.table import Row


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


class Axis(NamedTuple):
    """What accuracy is shown against.

    Attributes:
        name: Of the axis.
        column: Whose values.
        cost: A value as a cost: less is better.
    """

    name: str
    column: str
    cost: Callable[[float], float]


AXES = (
    Axis("sparsity", "sparsity", lambda value: -value),
    Axis("compression", "compression", lambda value: -value),
    Axis("macs", "macs", float),
    Axis("latency", "latency_ms", float),
)


MOST_LINES = 12  # of more methods nobody tells the lines apart


# What is shown, more is better: the column and its sign.
MEASURES = {"accuracy": 1, "accuracy_top5": 1, "accuracy_drop": -1}


@dataclass
class Point:
    """One operating point over its seeds.

    Attributes:
        rows: One a run.
        x: Spread on each axis where all runs were measured.
        y: Spread of each measure that there is.
        fronts: The (axis, measure) pairs on whose Pareto front it is.
        levels: Of a chosen network: the sparsities that its runs passed on the way.
        owners: Of a dense control: whose control it is.
    """

    rows: list[Row]
    x: dict[str, Spread]
    y: dict[str, Spread]
    fronts: set[tuple[str, str]] = field(default_factory=set)
    levels: list[Point] = field(default_factory=list)
    owners: list[Row] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        """The different seeds, in order."""
        return sorted({int(row.run.result["seed"]) for row in self.rows})


@dataclass
class Series:
    """The operating points of one method, by sparsity.

    Attributes:
        name: Of the method.
        points: Of chosen networks.
        line: Whether the points belong on one line.
    """

    name: str
    points: list[Point]
    line: bool = True


@dataclass
class Plot:
    """What one task shows.

    Attributes:
        series: One a method; of very many methods, one a recipe, without a line.
        dense: One a kind of dense control, the common one first; it has no sparsity.
    """

    series: list[Series]
    dense: list[Point]


def make_plot(rows: Sequence[Row]) -> Plot:
    """The points of one task's rows, with the Pareto fronts over chosen and dense networks."""
    pruned = [row for row in rows if row.run.pruned is not None]
    methods = _grouped(pruned, lambda row: method_key(row.run))
    if len(methods) <= MOST_LINES:
        series = [Series(str(own[0].values["method"]), _points(own)) for own in methods]
    else:
        recipes = _grouped(pruned, lambda row: row.values["recipe"])
        series = [Series(str(own[0].values["recipe"]), _points(own), False) for own in recipes]
    plot = Plot(series, _dense(rows))
    mark_fronts([*(point for one in series for point in one.points), *plot.dense])
    return plot


def mark_fronts(points: Sequence[Point]) -> None:
    """Notes at each point on which Pareto fronts it is, by its means."""
    for axis in AXES:
        for measure in MEASURES:
            there = [p for p in points if axis.name in p.x and measure in p.y]
            costs = [axis.cost(point.x[axis.name].mean) for point in there]
            values = [point.y[measure].mean for point in there]
            for point, kept in zip(there, front(costs, values), strict=True):
                if kept:
                    point.fronts.add((axis.name, measure))


def _points(rows: Iterable[Row]) -> list[Point]:
    """One point for each settings, by sparsity, with its levels."""
    found = []
    for own in _grouped(rows, lambda row: point_key(row.run)):
        point = _point([row for row in own if row.final])
        levels = (row for row in own if not row.final)
        for level in _grouped(levels, lambda row: round(row.values["sparsity"], 6)):
            point.levels.append(_point(level))
        point.levels.sort(key=_sparsity)
        found.append(point)
    return sorted(found, key=_sparsity)


def _sparsity(point: Point) -> float:
    return point.x["sparsity"].mean


def _point(rows: list[Row]) -> Point:
    columns = {axis.name: [row.values[axis.column] for row in rows] for axis in AXES}
    x = {name: spread(found) for name, found in columns.items() if None not in found}
    y = {}
    for measure, sign in MEASURES.items():
        values = [row.values[measure] for row in rows]
        if None not in values:
            y[measure] = spread([sign * value for value in values])
    return Point(rows, x, y)


def _dense(rows: Sequence[Row]) -> list[Point]:
    """The dense controls, each counted once however many runs share it; the common kind first."""
    kinds = _grouped(
        (row for row in rows if row.final), lambda row: control_key(row.run, seeds=False)
    )
    found = []
    for own in sorted(kinds, key=len, reverse=True):
        first = {control_key(row.run): row for row in reversed(own)}
        found.append(_control([*first.values()], own))
    return found


def _control(rows: list[Row], owners: list[Row]) -> Point:
    """A kind of dense control: one row for each of them; timed anew beside each owner's network."""
    times = [ms for row in owners if (ms := row.values["dense_latency_ms"]) is not None]
    x = {
        "compression": Spread(1.0, None, len(rows)),
        "macs": spread([row.run.dense["macs"] for row in rows]),
    }
    if times:
        x["latency"] = spread(times)
    y = {"accuracy": spread([row.run.dense["accuracy"] for row in rows])}
    if all("accuracy_top5" in row.run.dense for row in rows):
        y["accuracy_top5"] = spread([row.run.dense["accuracy_top5"] for row in rows])
    y["accuracy_drop"] = Spread(0.0, None, len(rows))
    return Point(rows, x, y, owners=owners)


def _grouped(rows: Iterable[Row], key: Callable[[Row], object]) -> list[list[Row]]:
    """Rows of equal key together, in the order of their first."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())
