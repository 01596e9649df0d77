# SPDX-License-Identifier: MIT
"""Points of the plot: means and deviations over seeds, and the Pareto front."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from regrow.report.load import Run
from regrow.utils.errors import join_limited
from regrow.utils.imports import import_optional

if TYPE_CHECKING:
    from pandas import DataFrame

MAX_LINES = 12  # of more methods, lines cannot be distinguished
# Columns of the horizontal axes.
AXES = {name: name for name in ("sparsity", "compression", "macs")} | {"latency": "latency_ms"}
_MORE_IS_BETTER = ("sparsity", "compression")  # of the axes
MEASURES = ("accuracy", "accuracy_top5", "accuracy_drop")  # a drop counts as a negative change
# Of a table of means: heading, factor and format.
_MEANS = {
    "sparsity": ("Sparsity, %", 100, ".2f"),
    "accuracy": ("Top-1, %", 100, ".2f"),
    "accuracy_top5": ("Top-5, %", 100, ".2f"),
    "accuracy_drop": ("Against dense, points", 100, "+.2f"),
    "compression": ("Compression, x", 1, ".2f"),
    "macs": ("MACs", 1, ",.0f"),
    "latency": ("Latency, ms", 1, ".3f"),
}
_MEASURED = (*AXES.values(), *MEASURES)
_DENSE = tuple(f"dense_{name}" for name in ("macs", "accuracy", "accuracy_top5"))


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Return which points are not dominated, in O(n log n).

    Point j dominates i if cost_j <= cost_i and value_j >= value_i, one of them strictly. Equal
    points do not dominate each other.
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
    """Mean and standard deviation of n values."""

    mean: float
    deviation: float | None  # sqrt(sum((x - mean)^2) / (n - 1)); None for one value
    n: int

    def overlaps(self, other: Spread) -> bool | None:
        """Return whether the intervals mean +- deviation overlap; None if one has no deviation."""
        if self.deviation is None or other.deviation is None:
            return None
        return abs(self.mean - other.mean) <= self.deviation + other.deviation

    def format(self, form: str = ".2f", times: float = 100) -> str:
        """Format a multiple of the mean, with the standard deviation if there is one."""
        mean = f"{times * self.mean:{form}}"
        if self.deviation is None:
            return mean
        return f"{mean} ± {times * self.deviation:{form.removeprefix('+')}}"


def compute_spreads(groups: Any, columns: Sequence[str]) -> list[dict[str, Spread]]:
    """Compute the spread of each group of a `DataFrameGroupBy`, of columns that all rows have."""
    table = groups[list(columns)].agg(["mean", "std", "count"]).to_numpy()
    spreads = table.reshape(len(table), len(columns), 3).tolist()
    return [
        {
            name: Spread(mean, None if size == 1 else deviation, size)
            for name, (mean, deviation, count) in zip(columns, group, strict=True)
            if count == size
        }
        for group, size in zip(spreads, groups.size().tolist(), strict=True)
    ]


@dataclass
class Point:
    """One operating point over its seeds; `x` and `y` have what was measured in all runs."""

    name: str  # its method; of a dense baseline, its epochs and seeds
    run: Run  # the first one
    methods: list[str]  # its method; for a dense baseline, all methods compared with it
    seeds: list[int]  # the different ones, sorted
    x: dict[str, Spread]  # by axis
    y: dict[str, Spread]  # by measure
    fronts: set[tuple[str, str]] = field(default_factory=set)  # Pareto fronts, (axis, measure)
    levels: list[Point] = field(default_factory=list)  # intermediate sparsities of its runs


class Series(NamedTuple):
    """The operating points of one method, by sparsity."""

    name: str
    points: list[Point]  # final networks
    line: bool  # whether the points are joined


class Plot(NamedTuple):
    """The points of one task."""

    series: list[Series]  # one for each method; if there are too many, one for each recipe
    dense: list[Point]  # one for each kind of dense baseline, the most common first


def make_plot(rows: DataFrame) -> Plot:
    """Make the points of one task's rows, with the Pareto fronts over pruned and dense networks."""
    rows = rows.astype(dict.fromkeys((*_MEASURED, *_DENSE, "dense_latency_ms"), float))
    rows["accuracy_drop"] *= -1
    pruned = rows[[run.pruned is not None for run in rows["run"]]]
    line = pruned["method"].nunique() <= MAX_LINES
    groups = pruned.groupby("method" if line else "recipe", sort=False)
    series = [Series(str(name), _make_points(own), line) for name, own in groups]
    plot = Plot(series, _make_dense_points(rows[rows["final"] == "yes"]))
    mark_fronts([*(point for one in series for point in one.points), *plot.dense])
    return plot


def mark_fronts(points: Sequence[Point]) -> None:
    """Record on which Pareto fronts each point is, by its means.

    Sparsities of weights and of MACs or channels cannot be compared: beside one another they have
    no front.
    """
    kinds = {point.run.result.get("of") for point in points if "sparsity" in point.x}
    for axis in AXES if len(kinds) < 2 else [axis for axis in AXES if axis != "sparsity"]:
        sign = -1 if axis in _MORE_IS_BETTER else 1
        for measure in MEASURES:
            measured = [p for p in points if axis in p.x and measure in p.y]
            if axis == "latency":  # dense kernels take as long for zeros: differences are noise
                measured = [
                    p for p in measured if "sparsity" not in p.x or "channels" in p.run.result
                ]
            costs = [sign * point.x[axis].mean for point in measured]
            values = [point.y[measure].mean for point in measured]
            for point, kept in zip(measured, pareto_front(costs, values), strict=True):
                if kept:
                    point.fronts.add((axis, measure))


def tabulate_means(plot: Plot) -> DataFrame:
    """Make a table of means ± standard deviations over seeds, as text to be printed.

    Rows are operating points and dense baselines. Sizes that are equal for all seeds have no
    deviation, and columns of what was not measured are left out.
    """
    pandas = import_optional("a report", "report", "pandas")
    rows = []
    for point in (*(point for one in plot.series for point in one.points), *plot.dense):
        of = point.run.result.get("of") if "sparsity" in point.x else None
        row = {"Method": point.name, "Of": of}
        for name, (heading, times, form) in _MEANS.items():
            if spread := (point.x | point.y).get(name):
                text = spread.format(form, times)
                row[heading] = text.removesuffix(f" ± {0:{form}}") if name in AXES else text
        rows.append(row | {"Seeds": len(point.seeds)})
    columns = ["Method", "Of", *(heading for heading, *_ in _MEANS.values()), "Seeds"]
    table: DataFrame = pandas.DataFrame(rows, columns=columns).dropna(axis=1, how="all").fillna("")
    return table


def _make_points(rows: DataFrame) -> list[Point]:
    """Make one point with its levels for each settings, sorted by sparsity."""
    level = rows["sparsity"].round(6).where(rows["final"] == "no", -1.0)
    groups = rows.groupby([rows["point"], level], sort=False)
    facts = groups[["run", "method", "seed"]].agg(list)
    finals: dict[str, Point] = {}
    levels: dict[str, list[Point]] = {}
    for own, spreads in zip(facts.itertuples(), compute_spreads(groups, _MEASURED), strict=True):
        x = {name: spreads[column] for name, column in AXES.items() if column in spreads}
        y = {name: spreads[name] for name in MEASURES if name in spreads}
        point = Point(own.method[0], own.run[0], own.method[:1], sorted({*own.seed}), x, y)
        key, sparsity = own.Index
        if sparsity < 0:
            finals[key] = point
        else:
            levels.setdefault(key, []).append(point)
    for key, points in levels.items():
        finals[key].levels = sorted(points, key=_sparsity)
    return sorted(finals.values(), key=_sparsity)


def _sparsity(point: Point) -> float:
    return point.x["sparsity"].mean


def _make_dense_points(rows: DataFrame) -> list[Point]:
    """Make one point for each kind of dense baseline; shared baselines count once.

    The latency of a baseline is measured with each run that shares it.
    """
    kinds = [own for _, own in rows.groupby("baseline_kind", sort=False)]
    points = []
    for own in sorted(kinds, key=len, reverse=True):
        once = own.drop_duplicates("baseline")
        timed = own.dropna(subset="dense_latency_ms").groupby("baseline_kind")
        [spreads] = compute_spreads(once.groupby("baseline_kind"), _DENSE)
        x = {"compression": Spread(1.0, None, len(once)), "macs": spreads["dense_macs"]}
        for latency in compute_spreads(timed, ["dense_latency_ms"]):
            x["latency"] = latency["dense_latency_ms"]
        y = {name.removeprefix("dense_"): spreads[name] for name in _DENSE[1:] if name in spreads}
        y["accuracy_drop"] = Spread(0.0, None, len(once))
        methods, seeds = sorted({*own["method"]}), sorted({*once["seed"]})
        points.append(
            Point(_name_dense(own["run"].iloc[0], seeds), own["run"].iloc[0], methods, seeds, x, y)
        )
    names = Counter(point.name for point in points)
    for point in points:
        if names[point.name] > 1:
            point.name += f" (of {join_limited(point.methods)})"
    return points


def _name_dense(run: Run, seeds: Sequence[int]) -> str:
    """Name a dense baseline by its budget and its seeds."""
    epochs = run.result.get("epochs")
    known = run.setting("start") in (None, "scratch")
    unknown = "epochs not counted" if known else "trained before"
    budget = unknown if epochs is None else f"{epochs} epochs"
    return f"dense, {budget}, seed{'s' * (len(seeds) > 1)} {join_limited(map(str, seeds), 5)}"
