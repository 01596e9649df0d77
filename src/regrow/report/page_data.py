# SPDX-License-Identifier: MIT
"""Data of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from regrow.report.curves import Curve, metric_files, read_curves, thinned
from regrow.report.hover_text import dense_text, point_text
from regrow.report.load import Run
from regrow.report.statistics import Plot, Point, Spread
from regrow.report.table import COLUMNS, NAMES, Row
from regrow.report.tasks import Task

_NUMBERS = 150_000  # in all curves and events together: about a megabyte


_TEXT = {column.name for column in COLUMNS if column.text}


class Texts:
    """Texts that occur again and again, each kept once; a text is its place in the list."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def place(self, text: str) -> int:
        """The index of a text; it is added if it is new."""
        return self.places.setdefault(text, len(self.places))


def payload(tasks: Sequence[Task]) -> dict[str, Any]:
    """Everything that the scripts show; texts of rows and runs as places in `texts`."""
    texts = Texts()
    rows = [row for task in tasks for row in task.rows]
    finals = [row for row in rows if row.final]
    most = max(20, min(400, _NUMBERS // (12 * max(1, len(finals)))))
    return {
        "tasks": [{"name": task.name, "size": task.size, **_plot(task.plot)} for task in tasks],
        "columns": [column._asdict() for column in COLUMNS],
        "rows": [_row(row, texts) for row in rows],
        "runs": [_run(row, most, texts) for row in finals],
        "texts": list(texts.places),
    }


def _plot(plot: Plot) -> dict[str, Any]:
    return {
        "series": [
            {
                "name": one.name,
                "line": one.line,
                "points": [
                    _point(p, point_text(_name(p), p))
                    | {"levels": [_point(lv, point_text(_name(lv), lv)) for lv in p.levels]}
                    for p in one.points
                ],
            }
            for one in plot.series
        ],
        "dense": [_point(p, dense_text(_owners(plot, p), p)) for p in plot.dense],
    }


def _name(point: Point) -> str:
    return str(point.rows[0].values["method"])


def _owners(plot: Plot, control: Point) -> list[str]:
    """The methods that were compared with a dense control."""
    return sorted({str(row.values["method"]) for row in control.owners})


def _point(point: Point, text: str) -> dict[str, Any]:
    return {
        "x": {name: _spread(value) for name, value in point.x.items()},
        "y": {name: _spread(value) for name, value in point.y.items()},
        "fronts": sorted(f"{axis} {measure}" for axis, measure in point.fronts),
        "text": text,
    }


def _spread(found: Spread) -> list[float | int | None]:
    deviation = None if found.deviation is None else _short(found.deviation)
    return [_short(found.mean), deviation, found.n]


def _row(row: Row, texts: Texts) -> list[Any]:
    return [
        texts.place(str(value)) if name in _TEXT and value is not None else value
        for name, value in ((name, row.values[name]) for name in NAMES)
    ]


def _run(row: Row, most: int, texts: Texts) -> dict[str, Any]:
    """One run in detail: what it says of itself, its layers, curves and events."""
    run, values = row.run, row.values
    title = f"{values['method']}, {100 * values['sparsity']:.4g} %, seed {values['seed']}"
    curves = read_curves(metric_files(run.folder))
    return {
        "title": texts.place(title),
        "facts": [[name, texts.place(str(text))] for name, text in _facts(run, values)],
        "layers": [
            [texts.place(str(name)), _short(1 - float(gone))]
            for name, gone in (run.result.get("layers") or {}).items()
        ],
        "curves": [_curve(thinned(curve, most)) for curve in curves],
        "thinned": any(len(curve.steps) > most for curve in curves),
        "events": _events(run, most),
    }


def _facts(run: Run, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("Verdict", str(run.result.get("verdict") or "")),
        ("Data and model", f"{values['data']} · {values['model']}"),
        ("Overrides", str(values["overrides"])),
        ("Not pruned", str(values["excluded"])),
        ("Folder", str(values["folder"])),
        ("Config hash", str(values["config_hash"])),
    ]
    return [(name, text) for name, text in facts if text]


def _curve(curve: Curve) -> list[Any]:
    return [curve.name, curve.steps, [_short(value) for value in curve.values]]


def _events(run: Run, most: int) -> list[list[Any]]:
    """Step, epoch, kind and sparsity after each change of masks; of very many, some."""
    events = [
        [entry["step"], entry.get("epoch"), str(entry.get("kind", "")), _short(entry["after"])]
        for entry in run.result["history"]
        if isinstance(entry, dict)
        and isinstance(entry.get("step"), Real)
        and isinstance(entry.get("after"), Real)
    ]
    if len(events) <= most:
        return events
    return [events[round(place * (len(events) - 1) / (most - 1))] for place in range(most)]


def _short(value: float) -> float:
    """A number with as many digits as a plot can show."""
    return float(f"{value:.6g}")
