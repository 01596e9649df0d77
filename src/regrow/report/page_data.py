# SPDX-License-Identifier: MIT
"""Data of the HTML page, as read by its scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from numbers import Real
from typing import Any

from regrow.report.curves import downsample, find_metric_files, read_curves, spaced_indices
from regrow.report.hover_text import dense_text, point_text
from regrow.report.load import Run
from regrow.report.statistics import Plot, Point, Spread
from regrow.report.table import COLUMNS, NAMES, Row
from regrow.report.tasks import Task

_NUMBERS = 150_000  # in all curves and events together: about a megabyte
_TEXT = {column.name for column in COLUMNS if column.text}


class TextTable:
    """Stores each text once; a text is represented by its index."""

    def __init__(self) -> None:
        self.indices: dict[str, int] = {}

    def index(self, text: str) -> int:
        """Return the index of a text, which is added if it is new."""
        return self.indices.setdefault(text, len(self.indices))


def make_page_data(tasks: Sequence[Task]) -> dict[str, Any]:
    """Collect everything that the scripts show; texts of rows and runs are indices in `texts`."""
    texts = TextTable()
    rows = [row for task in tasks for row in task.rows]
    finals = [row for row in rows if row.final]
    limit = max(20, min(400, _NUMBERS // (12 * max(1, len(finals)))))
    return {
        "tasks": [{"name": task.name, "size": task.size, **_plot(task.plot)} for task in tasks],
        "columns": [asdict(column) for column in COLUMNS],
        "rows": [_row(row, texts) for row in rows],
        "runs": [_run(row, limit, texts) for row in finals],
        "texts": list(texts.indices),
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
        "dense": [_point(p, dense_text(_owners(p), p)) for p in plot.dense],
    }


def _name(point: Point) -> str:
    return str(point.rows[0].values["method"])


def _owners(baseline: Point) -> list[str]:
    return sorted({str(row.values["method"]) for row in baseline.owners})


def _point(point: Point, text: str) -> dict[str, Any]:
    return {
        "x": {name: _spread(value) for name, value in point.x.items()},
        "y": {name: _spread(value) for name, value in point.y.items()},
        "fronts": sorted(f"{axis} {measure}" for axis, measure in point.fronts),
        "text": text,
    }


def _spread(value: Spread) -> list[float | int | None]:
    deviation = None if value.deviation is None else _short(value.deviation)
    return [_short(value.mean), deviation, value.n]


def _row(row: Row, texts: TextTable) -> list[Any]:
    return [
        texts.index(str(value)) if name in _TEXT and value is not None else value
        for name, value in ((name, row.values[name]) for name in NAMES)
    ]


def _run(row: Row, limit: int, texts: TextTable) -> dict[str, Any]:
    """Return the details of one run: facts, layers, curves, events."""
    run, values = row.run, row.values
    title = f"{values['method']}, {100 * values['sparsity']:.4g} %, seed {values['seed']}"
    curves = read_curves(find_metric_files(run.folder))
    shown = [downsample(curve, limit) for curve in curves]
    return {
        "title": texts.index(title),
        "facts": [[name, texts.index(text)] for name, text in _facts(run, values)],
        "layers": [
            [texts.index(str(name)), _short(1 - float(sparsity))]
            for name, sparsity in (run.result.get("layers") or {}).items()
        ],
        "curves": [[c.name, c.steps, [_short(value) for value in c.values]] for c in shown],
        "downsampled": any(len(curve.steps) > limit for curve in curves),
        "events": _events(run, limit),
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


def _events(run: Run, limit: int) -> list[list[Any]]:
    """Return step, epoch, kind and sparsity of at most `limit` changes of masks."""
    events = [
        [entry["step"], entry.get("epoch"), str(entry.get("kind", "")), _short(entry["after"])]
        for entry in run.result["history"]
        if isinstance(entry, dict)
        and isinstance(entry.get("step"), Real)
        and isinstance(entry.get("after"), Real)
    ]
    return [events[i] for i in spaced_indices(len(events), limit)]


def _short(value: float) -> float:
    """Round to as many digits as a plot can show."""
    return float(f"{value:.6g}")
