# SPDX-License-Identifier: MIT
"""Training curves."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

WORDS = ("accuracy", "loss")  # a metric with one of these in its name is a curve


class Curve(NamedTuple):
    """One metric over the optimizer steps of a fit."""

    name: str
    steps: list[int]
    values: list[float]


def metric_files(folder: Path) -> list[Path]:
    """A run's metrics, oldest part first: metrics.0.csv, metrics.1.csv, ..., metrics.csv."""

    def place(path: Path) -> tuple[str, float]:
        middle = path.name.removeprefix("metrics").removesuffix("csv").strip(".")
        return str(path.parent), int(middle) if middle.isdigit() else math.inf

    return sorted((folder / "logs").glob("**/metrics*.csv"), key=place)


def read_curves(files: Iterable[Path]) -> list[Curve]:
    """The accuracies and losses in metric files; a later file has the last word on a step.

    A resumed run logs some steps again. Rows cut off while they were written are left out.

    Args:
        files: CSV files with a column `step`, oldest first.
    """
    found: dict[str, dict[int, float]] = {}
    for file in files:
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                step = _number(row.get("step"))
                if step is None:
                    continue
                for name, text in row.items():
                    value = _number(text) if name and any(w in name for w in WORDS) else None
                    if value is not None:
                        found.setdefault(name, {})[int(step)] = value
    return [
        Curve(name, sorted(points), [points[step] for step in sorted(points)])
        for name, points in sorted(found.items())
    ]


def thinned(curve: Curve, most: int) -> Curve:
    """At most `most` points of a curve, evenly spread, the first and the last among them.

    Example:
        >>> thinned(Curve("loss", [0, 1, 2, 3, 4], [5.0, 4.0, 3.0, 2.0, 1.0]), 3)
        Curve(name='loss', steps=[0, 2, 4], values=[5.0, 3.0, 1.0])
    """
    places = _spread_places(len(curve.steps), most)
    return Curve(curve.name, [curve.steps[i] for i in places], [curve.values[i] for i in places])


def _spread_places(count: int, most: int) -> Sequence[int]:
    if count <= most:
        return range(count)
    if most < 2:
        return [count - 1][:most]
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
