# SPDX-License-Identifier: MIT
"""Read training curves from the metric files of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from regrow.utils.imports import import_optional

METRICS = ("accuracy", "loss")  # a metric whose name contains one of these is a curve


class Curve(NamedTuple):
    """One metric over the optimizer steps of a fit."""

    name: str
    steps: list[int]
    values: list[float]


def find_metric_files(folder: Path) -> list[Path]:
    """List a run's metric files, oldest first: metrics.0.csv, metrics.1.csv, ..., metrics.csv."""

    def order(path: Path) -> tuple[str, float]:
        number = path.name.removeprefix("metrics").removesuffix("csv").strip(".")
        return str(path.parent), int(number) if number.isdigit() else math.inf

    return sorted((folder / "logs").glob("**/metrics*.csv"), key=order)


def read_curves(files: Sequence[Path]) -> list[Curve]:
    """Read accuracies and losses; where steps repeat (a resumed run), the later file counts.

    Cells that are no finite number are skipped: a run that was killed leaves incomplete rows.

    Args:
        files: CSV files with a column `step`, oldest first.
    """
    pandas = import_optional("a report", "report", "pandas")
    options = {"on_bad_lines": "skip", "index_col": False, "low_memory": False, "usecols": _is_read}
    tables = [pandas.read_csv(path, **options) for path in files if path.stat().st_size]
    tables = [table for table in tables if "step" in table]
    if not tables:
        return []
    table = pandas.concat(tables).apply(pandas.to_numeric, errors="coerce")
    by_step = table.where(table.abs() < math.inf).groupby("step").last()
    curves = ((name, by_step[name].dropna()) for name in sorted(by_step))
    return [Curve(name, [*map(int, c.index)], c.tolist()) for name, c in curves if len(c)]


def _is_read(column: str) -> bool:
    return column == "step" or any(metric in column for metric in METRICS)


def downsample(curve: Curve, limit: int) -> Curve:
    """Keep at most `limit` points of a curve, evenly spaced, with the first and the last.

    Example:
        >>> downsample(Curve("loss", [0, 1, 2, 3, 4], [5.0, 4.0, 3.0, 2.0, 1.0]), 3)
        Curve(name='loss', steps=[0, 2, 4], values=[5.0, 3.0, 1.0])
    """
    kept = spaced_indices(len(curve.steps), limit)
    return Curve(curve.name, [curve.steps[i] for i in kept], [curve.values[i] for i in kept])


def spaced_indices(count: int, limit: int) -> Sequence[int]:
    """Return at most `limit` (two or more) of `count` indices, evenly spaced."""
    if count <= limit:
        return range(count)
    return [round(i * (count - 1) / (limit - 1)) for i in range(limit)]
