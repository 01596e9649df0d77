# SPDX-License-Identifier: MIT
"""Data and templates of the HTML page."""

from __future__ import annotations

import functools
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from numbers import Real
from typing import TYPE_CHECKING, Any

from regrow.report.curves import downsample, find_metric_files, read_curves, spaced_indices
from regrow.report.load import Run
from regrow.report.statistics import Plot, Point, Spread, format_percent, format_points
from regrow.report.table import COLUMNS, Values
from regrow.report.tasks import Task
from regrow.utils.imports import import_optional

if TYPE_CHECKING:
    from jinja2 import Template

_NUMBERS = 150_000  # in all curves and events together: about a megabyte
Texts = dict[str, int]  # indices of texts; a text that is looked up is added


def make_page_data(tasks: Sequence[Task]) -> dict[str, Any]:
    """Collect everything that the scripts show; texts of rows and runs are indices in `texts`."""
    texts: defaultdict[str, int] = defaultdict()
    texts.default_factory = texts.__len__
    rows = [row for task in tasks for row in task.rows.to_dict("records")]
    finals = [row for row in rows if row["final"] == "yes"]
    limit = max(20, min(400, _NUMBERS // (12 * max(1, len(finals)))))
    columns = [dict(zip(column._fields[:-1], column[:-1], strict=True)) for column in COLUMNS]
    return {
        "tasks": [{"name": task.name, "size": task.size, **_plot(task.plot)} for task in tasks],
        "columns": columns,
        "rows": [_row(row, texts) for row in rows],
        "runs": [_run(row, limit, texts) for row in finals],
        "texts": list(texts),
    }


def _plot(plot: Plot) -> dict[str, Any]:
    return {
        "series": [
            {
                "name": one.name,
                "line": one.line,
                "points": [
                    _point(point) | {"levels": [_point(level) for level in point.levels]}
                    for point in one.points
                ],
            }
            for one in plot.series
        ],
        "dense": [_point(point, dense=True) for point in plot.dense],
    }


def _point(point: Point, *, dense: bool = False) -> dict[str, Any]:
    text = load_template("hover.html.j2").render(point=point, dense=dense)
    return {
        "x": {name: _spread(value) for name, value in point.x.items()},
        "y": {name: _spread(value) for name, value in point.y.items()},
        "fronts": sorted(f"{axis} {measure}" for axis, measure in point.fronts),
        "text": text.strip().replace("\n<br>", "<br>"),
    }


def _spread(value: Spread) -> list[float | int | None]:
    deviation = None if value.deviation is None else _round(value.deviation)
    return [_round(value.mean), deviation, value.n]


def _row(row: Values, texts: Texts) -> list[Any]:
    values = ((row[column.name], column.text) for column in COLUMNS)
    return [texts[str(v)] if text and v is not None else v for v, text in values]


def _run(row: Values, limit: int, texts: Texts) -> dict[str, Any]:
    """Return the details of one run: facts, layers, curves, events."""
    run: Run = row["run"]
    curves = read_curves(find_metric_files(run.folder))
    facts = {
        "Verdict": str(run.result.get("verdict") or ""),
        "Data and model": f"{row['data']} · {row['model']}",
        "Overrides": str(row["overrides"]),
        "Not pruned": str(row["excluded"]),
        "Folder": str(row["folder"]),
        "Config hash": str(row["config_hash"]),
    }
    return {
        "title": texts[f"{row['method']}, {100 * row['sparsity']:.4g} %, seed {row['seed']}"],
        "facts": [[name, texts[text]] for name, text in facts.items() if text],
        "layers": [
            [texts[str(name)], _round(1 - float(sparsity))]
            for name, sparsity in (run.result.get("layers") or {}).items()
        ],
        "curves": [
            [name, steps, [*map(_round, values)]]
            for name, steps, values in (downsample(curve, limit) for curve in curves)
        ],
        "downsampled": any(len(curve.steps) > limit for curve in curves),
        "events": _events(run, limit),
    }


def _events(run: Run, limit: int) -> list[list[Any]]:
    """Return step, epoch, kind and sparsity of at most `limit` changes of masks."""
    events = [
        [entry["step"], entry.get("epoch"), str(entry.get("kind", "")), _round(entry["after"])]
        for entry in run.result["history"]
        if isinstance(entry, dict)
        and isinstance(entry.get("step"), Real)
        and isinstance(entry.get("after"), Real)
    ]
    return [events[i] for i in spaced_indices(len(events), limit)]


def _round(value: float) -> float:
    """Round to as many digits as a plot can show."""
    return float(f"{value:.6g}")


def read_asset(name: str) -> str:
    """Read a file that is part of the page."""
    return (files("regrow.report") / "assets" / name).read_text(encoding="utf-8")


@functools.cache
def load_template(name: str) -> Template:
    """Load a template, which escapes all values for HTML.

    Raises:
        ConfigError: If jinja2 is not installed.
    """
    jinja2 = import_optional("the page of the report", "report", "jinja2")
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, **options)
    environment.filters |= {"percent": format_percent, "points": format_points}
    environment.filters["wrap"] = lambda text: jinja2.utils.markupsafe.Markup(wrap_escaped(text))
    environment.tests["seed"] = lambda override: override.startswith("seed=")
    template: Template = environment.from_string(read_asset(name))
    return template


def wrap_escaped(text: str) -> str:
    """Wrap a text into at most four lines of 64 characters, each after a `<br>`, as HTML."""
    lines = textwrap.wrap(text, 64, max_lines=4, placeholder=" …")
    return "".join(f"<br>{escape(line)}" for line in lines)
