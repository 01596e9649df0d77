# SPDX-License-Identifier: MIT
"""Everything about one task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from regrow.report.advice import Advice, count_of
from regrow.report.fairness import uncertain, unfair
from regrow.report.load import Run
from regrow.report.run_identity import data_name, method_key, method_names, model_name, task_key
from regrow.report.statistics import Plot, make_plot
from regrow.report.table import Row, run_rows


class Task(NamedTuple):
    """What can be compared with one another.

    Attributes:
        name: Data and exact model.
        size: The dense model's parameters and MACs, in words.
        rows: Of all runs, run after run.
        plot: Their points.
        advice: What is unfair about comparing them.
    """

    name: str
    size: str
    rows: list[Row]
    plot: Plot
    advice: list[Advice]


def make_tasks(runs: Sequence[Run], folders: Sequence[str]) -> list[Task]:
    """Sorts runs into tasks, the one with most runs first.

    Args:
        runs: Finished jobs.
        folders: Their names, in the same order.
    """
    groups: dict[str, list[tuple[Run, str]]] = {}
    for run, folder in zip(runs, folders, strict=True):
        groups.setdefault(task_key(run), []).append((run, folder))
    return [_task(group) for group in sorted(groups.values(), key=len, reverse=True)]


def across(tasks: Sequence[Task]) -> list[Advice]:
    """What is unfair about comparing tasks with one another."""
    if len(tasks) < 2:
        return []
    return [
        Advice(
            "Different data or models",
            tuple(
                f"{task.name}: {count_of(len({id(row.run) for row in task.rows}), 'job')}."
                for task in tasks
            ),
            "Compare accuracies within one of them only: the plot shows one at a time.",
        )
    ]


def _task(group: Sequence[tuple[Run, str]]) -> Task:
    runs = [run for run, _ in group]
    names = method_names(runs)
    rows = [row for run, folder in group for row in run_rows(run, folder, names[method_key(run)])]
    plot = make_plot(rows)
    advice = unfair([(names[method_key(run)], run) for run in runs]) + uncertain(plot.series)
    dense = runs[0].dense
    return Task(
        f"{data_name(runs[0])} · {model_name(runs[0])}",
        f"{dense['params']:,} parameters, {dense['macs']:,} MACs an image",
        rows,
        plot,
        advice,
    )
