# SPDX-License-Identifier: MIT
"""Render the report as one HTML page."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from regrow.report.fairness import count_of
from regrow.report.load import Jobs, Run, find_metric_files, read_curves
from regrow.report.statistics import Point, tabulate_means
from regrow.report.table import COLUMNS, NAMES, Values
from regrow.report.tasks import Task, cross_task_advice
from regrow.utils.imports import import_optional

if TYPE_CHECKING:
    from jinja2 import Template
    from pandas import Series

_MEASURED = {"test": "Test accuracy", "val": "Validation accuracy"}  # by split
_NUMBERS = 150_000  # in all curves and events together: about a megabyte


def render_page(title: str, tasks: Sequence[Task], jobs: Jobs, when: datetime) -> str:
    """Render the page as HTML."""
    template = load_template("page.html.j2")
    plotly = packed_plotly()
    warned = [("", cross_task_advice(tasks))]
    warned += [(task.name if len(tasks) > 1 else "", task.advice) for task in tasks]
    return template.render(
        title=title,
        when=when.isoformat(" ", "minutes"),
        summary=summarize(tasks, jobs),
        tasks=tasks,
        warned=warned,
        means=[(task.name, tabulate_means(task.plot)) for task in tasks],
        jobs=jobs,
        measured=_name_measured(tasks),
        plotly=plotly,
        data=pack(json.dumps(_page_data(tasks), separators=(",", ":"), allow_nan=False)),
    )


def _name_measured(tasks: Sequence[Task]) -> str:
    """Name the accuracy by its split, or without one if runs of both splits are there."""
    splits = {run.split for task in tasks for run in task.rows["run"]}
    return _MEASURED[splits.pop()] if len(splits) == 1 else "Accuracy"


def summarize(tasks: Sequence[Task], jobs: Jobs) -> str:
    """Count jobs and methods, in one line."""
    methods = sum(task.rows["method"].nunique() for task in tasks)
    states = sorted(Counter(job.state for job in jobs.without_result).items())
    parts = [count_of(len(jobs.runs), "finished job"), count_of(methods, "method")]
    return " · ".join([*parts, *(f"{count} {state}" for state, count in states)])


def _page_data(tasks: Sequence[Task]) -> dict[str, Any]:
    """Collect everything that the scripts show; spreads and curves become arrays."""
    rows = [row for task in tasks for row in task.rows.to_dict("records")]
    finals = [row for row in rows if row["final"] == "yes"]
    limit = max(20, min(400, _NUMBERS // (12 * max(1, len(finals)))))
    plots = [
        {"name": task.name, "size": task.size, "dense": task.plot.dense}
        | {"series": [series._asdict() for series in task.plot.series]}
        for task in tasks
    ]
    return {
        "tasks": _round(plots),
        "measured": _name_measured(tasks),
        "columns": [column._asdict() for column in COLUMNS],
        "rows": [
            [*row, index]  # in the order of the columns, with the number of the task
            for index, task in enumerate(tasks)
            for row in task.rows[[*NAMES]].to_numpy().tolist()
        ],
        "runs": _round([_run_data(row, limit) for row in finals]),
        "settings": [row["run"].settings for row in finals],
    }


def _round(value: Any) -> Any:
    """Convert to what JSON holds, with six digits of each float, as many as a plot can show."""
    text = json.dumps(value, default=_point_data)
    return json.loads(text, parse_float=lambda number: float(f"{float(number):.6g}"))


def _point_data(point: Point) -> dict[str, Any]:
    """Convert a point, which `json` cannot."""
    overrides = [word for word in point.run.overrides if not word.startswith("seed=")]
    text = load_template("hover.html.j2").render(point=point, overrides=overrides)
    fronts = [" ".join(front) for front in sorted(point.fronts)]
    shared = {"x": point.x, "y": point.y, "levels": point.levels, "fronts": fronts, "text": text}
    return {"name": point.name, "of": point.run.result.get("of"), **shared}


def _run_data(row: Values, limit: int) -> dict[str, Any]:
    """Return the details of one run, of its curves and events at most `limit` points each."""
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
    events = [
        (entry["step"], entry.get("epoch"), entry["kind"], entry["after"])
        for entry in run.result["history"]
        if entry.get("step") is not None
    ]
    return {
        "title": f"{row['method']}, {100 * row['sparsity']:.4g} %, seed {row['seed']}",
        "facts": [fact for fact in facts.items() if fact[1]],
        "layers": list((run.result.get("layers") or {}).items()),
        "curves": [_curve_data(curve.dropna(), limit) for _, curve in curves.items()],
        "downsampled": any(curves.count() > limit),
        "events": [events[i] for i in spaced_indices(len(events), limit)],
    }


def _curve_data(curve: Series, limit: int) -> tuple[str, list[int], list[float]]:
    kept = curve.iloc[spaced_indices(len(curve), limit)]
    return str(kept.name), kept.index.tolist(), kept.tolist()


def spaced_indices(count: int, limit: int) -> Sequence[int]:
    """Return at most `limit` (two or more) of `count` indices, evenly spaced, with both ends."""
    if count <= limit:
        return range(count)
    return [round(i * (count - 1) / (limit - 1)) for i in range(limit)]


@functools.cache
def load_template(name: str) -> Template:
    """Load a template of the folder assets; values in HTML are escaped."""
    jinja2 = import_optional("the page of the report", "report", "jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("regrow.report", "assets"),
        autoescape=lambda file: ".html" in file,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template: Template = environment.get_template(name)
    return template


def pack(text: str) -> str:
    """Compress a text by gzip and encode it as base64: small, and free of markup."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@functools.cache
def packed_plotly() -> str:
    """Return plotly.js, packed: 2 MB instead of 5."""
    plotly = import_optional("the page of the report", "report", "plotly.offline")
    return pack(plotly.get_plotlyjs())
