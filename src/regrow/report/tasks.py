# SPDX-License-Identifier: MIT
"""Sort runs into tasks: those of the same data and model, which can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from regrow.report.fairness import (
    Advice,
    count_of,
    find_few_seeds,
    find_mixed_splits,
    find_overlaps,
    find_unfair,
)
from regrow.report.load import Run
from regrow.report.run_identity import (
    baseline_key,
    data_name,
    method_key,
    method_names,
    model_name,
    other_metric,
    point_key,
    task_key,
)
from regrow.report.statistics import Plot, make_plot
from regrow.report.table import run_rows
from regrow.utils.imports import import_optional

if TYPE_CHECKING:
    from pandas import DataFrame


class Task(NamedTuple):
    """All runs of the same data and model."""

    name: str  # data and model
    size: str  # parameters and MACs of the dense model
    rows: DataFrame  # of all runs, with the run and keys of what it is compared with
    plot: Plot
    advice: list[Advice]  # what makes a comparison of them unfair


def make_tasks(runs: Sequence[Run]) -> list[Task]:
    """Sort runs into tasks; the one with most runs is first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(task_key(run), []).append(run)
    return [_make_task(group) for group in sorted(groups.values(), key=len, reverse=True)]


def cross_task_advice(tasks: Sequence[Task]) -> list[Advice]:
    """Return warnings against comparing accuracies of different tasks, or of different splits."""
    runs = [
        pair for task in tasks for pair in zip(task.rows["method"], task.rows["run"], strict=True)
    ]
    advice = [*find_mixed_splits(runs)]
    if len(tasks) < 2:
        return advice
    counts = [(task.name, int((task.rows["final"] == "yes").sum())) for task in tasks]
    findings = tuple(f"{name}: {count_of(count, 'job')}." for name, count in counts)
    todo = "Compare accuracies within one of them only: the plot shows one at a time."
    return [Advice("Different data or models", findings, todo), *advice]


def _make_task(runs: Sequence[Run]) -> Task:
    pandas = import_optional("a report", "report", "pandas")
    names = method_names(runs)
    records = []
    for run in runs:
        keys = {"run": run, "point": point_key(run), "baseline": baseline_key(run)}
        keys["baseline_kind"] = baseline_key(run, seeds=False)
        records += [row | keys for row in run_rows(run, names[method_key(run)])]
    rows = pandas.DataFrame(records, dtype=object)
    plot, dense = make_plot(rows), runs[0].dense
    dense_names = {baseline_key(one.run, seeds=False): one.name for one in plot.dense}
    rows["dense_baseline"] = rows["baseline_kind"].map(dense_names)
    advice = find_unfair([(names[method_key(run)], run) for run in runs])
    return Task(
        " · ".join((data_name(runs[0]), model_name(runs[0]), *other_metric(runs[0]))),
        f"{dense['params']:,} parameters, {dense['macs']:,} MACs per image",
        rows,
        plot,
        [*advice, *find_few_seeds(plot.series), *find_overlaps(plot.series)],
    )
