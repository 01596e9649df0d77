# SPDX-License-Identifier: MIT
"""Read training curves from the metric files of a run."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

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


def read_curves(files: Iterable[Path]) -> list[Curve]:
    """Read accuracies and losses; where steps repeat (a resumed run), the later file counts.

    Incomplete rows, of a run that was killed while it wrote, are skipped.

    Args:
        files: CSV files with a column `step`, oldest first.
    """
    points: dict[str, dict[int, float]] = {}
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = _number(row.get("step"))
                if step is None:
                    continue
                for name, text in row.items():
                    value = _number(text) if name and any(m in name for m in METRICS) else None
                    if value is not None:
                        points.setdefault(name, {})[int(step)] = value
    return [
        Curve(name, sorted(by_step), [by_step[step] for step in sorted(by_step)])
        for name, by_step in sorted(points.items())
    ]


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


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
