# SPDX-License-Identifier: MIT
"""Render the report as one HTML page."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import textwrap
from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from numbers import Real
from typing import TYPE_CHECKING, Any

from regrow.report.curves import downsample, find_metric_files, read_curves, spaced_indices
from regrow.report.fairness import count_of
from regrow.report.load import JobWithoutResult, Run
from regrow.report.statistics import Point, Spread, format_percent, format_points
from regrow.report.table import COLUMNS, NAMES, Values
from regrow.report.tasks import Task, cross_task_advice
from regrow.utils.imports import import_optional

if TYPE_CHECKING:
    from jinja2 import Template

_SCRIPTS = ("base.js", "accuracy.js", "table.js", "run.js", "main.js")
_NUMBERS = 150_000  # in all curves and events together: about a megabyte


def render_page(
    title: str,
    tasks: Sequence[Task],
    without_result: Sequence[JobWithoutResult],
    copies: Sequence[str],
    when: datetime,
) -> str:
    """Render the page as HTML; `copies` are the names of jobs whose run is also elsewhere.

    Raises:
        ConfigError: If jinja2 or plotly is not installed.
    """
    warned = [("", cross_task_advice(tasks))]
    warned += [(task.name if len(tasks) > 1 else "", task.advice) for task in tasks]
    data = json.dumps(_page_data(tasks), separators=(",", ":"), allow_nan=False)
    page = load_template("page.html.j2").render(
        title=title,
        when=when.isoformat(" ", "minutes"),
        summary=summarize(tasks, without_result),
        tasks=tasks,
        warned=warned,
        without_result=without_result,
        copies=copies,
        style=read_asset("style.css"),
        script="\n".join(map(read_asset, _SCRIPTS)),
        plotly=packed_plotly(),
        data=pack(data),
    )
    return page + "\n"


def summarize(tasks: Sequence[Task], without_result: Sequence[JobWithoutResult]) -> str:
    """Count jobs and methods, in one line."""
    runs = sum(int((task.rows["final"] == "yes").sum()) for task in tasks)
    methods = sum(task.rows["method"].nunique() for task in tasks)
    parts = [count_of(runs, "finished job"), count_of(methods, "method")]
    for state in ("failed", "unfinished", "unreadable"):
        count = sum(job.state == state for job in without_result)
        parts += [f"{count} {state}"] if count else []
    return " · ".join(parts)


def _page_data(tasks: Sequence[Task]) -> dict[str, Any]:
    """Collect everything that the scripts show."""
    rows = [row for task in tasks for row in task.rows.to_dict("records")]
    finals = [row for row in rows if row["final"] == "yes"]
    limit = max(20, min(400, _NUMBERS // (12 * max(1, len(finals)))))
    return {
        "tasks": [_task_data(task) for task in tasks],
        "columns": [column._asdict() for column in COLUMNS],
        "rows": [[row[name] for name in NAMES] for row in rows],
        "runs": [_run_data(row, limit) for row in finals],
    }


def _task_data(task: Task) -> dict[str, Any]:
    series = [
        {"name": one.name, "line": one.line, "points": [_point_data(p) for p in one.points]}
        for one in task.plot.series
    ]
    dense = [_point_data(point, dense=True) for point in task.plot.dense]
    return {"name": task.name, "size": task.size, "series": series, "dense": dense}


def _point_data(point: Point, *, dense: bool = False) -> dict[str, Any]:
    text = load_template("hover.html.j2").render(point=point, dense=dense)
    return {
        "x": {name: _spread_data(value) for name, value in point.x.items()},
        "y": {name: _spread_data(value) for name, value in point.y.items()},
        "fronts": sorted(f"{axis} {measure}" for axis, measure in point.fronts),
        "text": text.strip().replace("\n<br>", "<br>"),
        "levels": [_point_data(level) for level in point.levels],
    }


def _spread_data(value: Spread) -> list[float | int | None]:
    deviation = None if value.deviation is None else _round(value.deviation)
    return [_round(value.mean), deviation, value.n]


def _run_data(row: Values, limit: int) -> dict[str, Any]:
    """Return the details of one run: facts, layers, curves, events."""
    run: Run = row["run"]
    curves = read_curves(find_metric_files(run.folder))
    facts = {
        "Verdict": run.result.get("verdict"),
        "Data and model": f"{row['data']} · {row['model']}",
        "Overrides": row["overrides"],
        "Not pruned": row["excluded"],
        "Folder": row["folder"],
        "Config hash": row["config_hash"],
    }
    return {
        "title": f"{row['method']}, {100 * row['sparsity']:.4g} %, seed {row['seed']}",
        "facts": [[name, text] for name, text in facts.items() if text],
        "layers": [
            [name, _round(1 - float(sparsity))]
            for name, sparsity in (run.result.get("layers") or {}).items()
        ],
        "curves": [
            [name, steps, [*map(_round, values)]]
            for name, steps, values in (downsample(curve, limit) for curve in curves)
        ],
        "downsampled": any(len(curve.steps) > limit for curve in curves),
        "events": _event_data(run, limit),
    }


def _event_data(run: Run, limit: int) -> list[list[Any]]:
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


def pack(text: str) -> str:
    """Compress a text by gzip and encode it as base64: small, and free of markup.

    Example:
        >>> gzip.decompress(base64.b64decode(pack("</script>")))
        b'</script>'
    """
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@functools.cache
def packed_plotly() -> str:
    """Return plotly.js, packed: 2 MB instead of 5."""
    plotly = import_optional("the page of the report", "report", "plotly.offline")
    return pack(plotly.get_plotlyjs())
