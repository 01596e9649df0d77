# SPDX-License-Identifier: MIT
"""Points of the plot: means and deviations over seeds, and the Pareto front."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from regrow.report.run_identity import baseline_key, method_key, point_key
from regrow.report.table import Row

MAX_LINES = 12  # of more methods, lines cannot be distinguished
# Columns of the vertical axis, with a sign: more is better.
MEASURES = {"accuracy": 1, "accuracy_top5": 1, "accuracy_drop": -1}


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Return which points are not dominated, in O(n log n).

    Point j dominates i if cost_j <= cost_i and value_j >= value_i, one of them strictly. Equal
    points do not dominate each other.

    Args:
        costs: Less is better.
        values: More is better.

    Raises:
        ValueError: For NaN, or if the lengths differ.

    Example:
        >>> pareto_front([1, 2, 3, 3], [0.8, 0.9, 0.85, 0.9])
        [True, True, False, False]
    """
    points = list(zip(costs, values, strict=True))
    if any(math.isnan(number) for point in points for number in point):
        raise ValueError("a cost or a value is NaN")
    kept = [False] * len(points)
    best = None  # the last point of the front so far: highest value, at its lowest cost
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if best is None or points[index][1] > best[1] or points[index] == best:
            best, kept[index] = points[index], True
    return kept


class Spread(NamedTuple):
    """Mean and standard deviation of n values.

    Attributes:
        mean: Arithmetic mean.
        deviation: Sample standard deviation, sqrt(sum((x - mean)^2) / (n - 1)); None for one value.
        n: Number of values.
    """

    mean: float
    deviation: float | None
    n: int

    def overlaps(self, other: Spread) -> bool | None:
        """Return whether the intervals mean +- deviation overlap; None if one has no deviation."""
        if self.deviation is None or other.deviation is None:
            return None
        return abs(self.mean - other.mean) <= self.deviation + other.deviation


def compute_spread(values: Sequence[float]) -> Spread:
    """Compute mean and sample standard deviation.

    Raises:
        ValueError: For no values.

    Example:
        >>> compute_spread([1, 2, 3]), compute_spread([0.9])
        (Spread(mean=2.0, deviation=1.0, n=3), Spread(mean=0.9, deviation=None, n=1))
    """
    if not values:
        raise ValueError("no values")
    deviation = float(statistics.stdev(values)) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


class Axis(NamedTuple):
    """A horizontal axis of the plot.

    Attributes:
        name: Name of the axis.
        column: Column of the table.
        sign: -1 where more is better.
    """

    name: str
    column: str
    sign: int


AXES = (
    Axis("sparsity", "sparsity", -1),
    Axis("compression", "compression", -1),
    Axis("macs", "macs", 1),
    Axis("latency", "latency_ms", 1),
)


@dataclass
class Point:
    """One operating point over its seeds.

    Attributes:
        rows: One for each run.
        x: Spread on each axis on which all runs were measured.
        y: Spread of each measure that all runs have.
        fronts: The (axis, measure) pairs on whose Pareto front it is.
        levels: Intermediate sparsities of its runs.
        owners: Of a dense baseline: rows of the networks compared with it.
    """

    rows: list[Row]
    x: dict[str, Spread]
    y: dict[str, Spread]
    fronts: set[tuple[str, str]] = field(default_factory=set)
    levels: list[Point] = field(default_factory=list)
    owners: list[Row] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        """The different seeds, sorted."""
        return sorted({int(row.run.result["seed"]) for row in self.rows})


@dataclass
class Series:
    """The operating points of one method, by sparsity.

    Attributes:
        name: Name of the method.
        points: Its final networks.
        line: Whether the points are joined by a line.
    """

    name: str
    points: list[Point]
    line: bool = True


@dataclass
class Plot:
    """The points of one task.

    Attributes:
        series: One for each method; if there are too many, one for each recipe, without a line.
        dense: One point for each kind of dense baseline, the most common first.
    """

    series: list[Series]
    dense: list[Point]


def make_plot(rows: Sequence[Row]) -> Plot:
    """Make the points of one task's rows, with the Pareto fronts over pruned and dense networks."""
    pruned = [row for row in rows if row.run.pruned is not None]
    column, groups = "method", _group(pruned, lambda row: method_key(row.run))
    line = len(groups) <= MAX_LINES
    if not line:
        column, groups = "recipe", _group(pruned, lambda row: row.values["recipe"])
    series = [Series(str(own[0].values[column]), _points(own), line) for own in groups]
    plot = Plot(series, _dense_points(rows))
    mark_fronts([*(point for one in series for point in one.points), *plot.dense])
    return plot


def mark_fronts(points: Sequence[Point]) -> None:
    """Record on which Pareto fronts each point is, by its means."""
    for axis in AXES:
        for measure in MEASURES:
            measured = [p for p in points if axis.name in p.x and measure in p.y]
            costs = [axis.sign * point.x[axis.name].mean for point in measured]
            values = [point.y[measure].mean for point in measured]
            for point, kept in zip(measured, pareto_front(costs, values), strict=True):
                if kept:
                    point.fronts.add((axis.name, measure))


def _points(rows: Iterable[Row]) -> list[Point]:
    """Make one point with its levels for each settings, sorted by sparsity."""
    points = []
    for own in _group(rows, lambda row: point_key(row.run)):
        point = _point([row for row in own if row.final])
        levels = (row for row in own if not row.final)
        by_sparsity = _group(levels, lambda row: round(row.values["sparsity"], 6))
        point.levels = sorted(map(_point, by_sparsity), key=_sparsity)
        points.append(point)
    return sorted(points, key=_sparsity)


def _sparsity(point: Point) -> float:
    return point.x["sparsity"].mean


def _point(rows: list[Row]) -> Point:
    columns = {axis.name: [row.values[axis.column] for row in rows] for axis in AXES}
    x = {name: compute_spread(values) for name, values in columns.items() if None not in values}
    y = {}
    for measure, sign in MEASURES.items():
        values = [row.values[measure] for row in rows]
        if None not in values:
            y[measure] = compute_spread([sign * value for value in values])
    return Point(rows, x, y)


def _dense_points(rows: Sequence[Row]) -> list[Point]:
    """Make one point for each kind of dense baseline; shared baselines count once."""
    final = (row for row in rows if row.final)
    kinds = _group(final, lambda row: baseline_key(row.run, seeds=False))
    points = []
    for own in sorted(kinds, key=len, reverse=True):
        first = {baseline_key(row.run): row for row in reversed(own)}
        points.append(_dense_point([*first.values()], own))
    return points


def _dense_point(rows: list[Row], owners: list[Row]) -> Point:
    """Make the point of a kind of dense baseline; its latency was measured with each owner's."""
    times = [ms for row in owners if (ms := row.values["dense_latency_ms"]) is not None]
    x = {
        "compression": Spread(1.0, None, len(rows)),
        "macs": compute_spread([row.run.dense["macs"] for row in rows]),
    }
    if times:
        x["latency"] = compute_spread(times)
    y = {"accuracy": compute_spread([row.run.dense["accuracy"] for row in rows])}
    if all("accuracy_top5" in row.run.dense for row in rows):
        y["accuracy_top5"] = compute_spread([row.run.dense["accuracy_top5"] for row in rows])
    y["accuracy_drop"] = Spread(0.0, None, len(rows))
    return Point(rows, x, y, owners=owners)


def _group(rows: Iterable[Row], key: Callable[[Row], object]) -> list[list[Row]]:
    """Group rows of equal key, in the order of their first."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())
