# SPDX-License-Identifier: MIT
"""Render the report as one HTML page."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

from regrow.report.advice import count_of
from regrow.report.load import JobWithoutResult
from regrow.report.page_data import make_page_data
from regrow.report.tasks import Task, cross_task_advice
from regrow.utils.imports import import_optional

NamedJobs = Sequence[tuple[str, JobWithoutResult]]
_SCRIPTS = ("base.js", "accuracy.js", "table.js", "run.js", "main.js")


def render_page(
    title: str,
    tasks: Sequence[Task],
    without_result: NamedJobs,
    copies: Sequence[str],
    when: datetime,
) -> str:
    """Render the page as HTML.

    Args:
        title: Its heading.
        tasks: All finished runs.
        without_result: Jobs without a result, with their names.
        copies: Names of jobs whose run is also in another folder.
        when: Time shown as that of writing.

    Raises:
        ConfigError: If jinja2 or plotly is not installed.
    """
    jinja2 = import_optional("the page of the report", "report", "jinja2")
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, **options)
    headings = [task.name if len(tasks) > 1 else "" for task in tasks]
    warned = [{"name": "", "advice": cross_task_advice(tasks)}]
    warned += [{"name": n, "advice": t.advice} for n, t in zip(headings, tasks, strict=True)]
    data = json.dumps(make_page_data(tasks), separators=(",", ":"), allow_nan=False)
    code: dict[str, Any] = {
        "style": _read_asset("style.css"),
        "script": "\n".join(map(_read_asset, _SCRIPTS)),
        "plotly": packed_plotly(),
        "data": pack(data),
    }
    page: str = environment.from_string(_read_asset("page.html.j2")).render(
        title=title,
        when=when.isoformat(" ", "minutes"),
        summary=summarize(tasks, without_result),
        tasks=tasks,
        warned=warned,
        without_result=without_result,
        copies=copies,
        **{name: jinja2.utils.markupsafe.Markup(text) for name, text in code.items()},
    )
    return page + "\n"


def summarize(tasks: Sequence[Task], without_result: NamedJobs) -> str:
    """Count jobs and methods, in one line."""
    runs = sum(int((task.rows["final"] == "yes").sum()) for task in tasks)
    methods = sum(task.rows["method"].nunique() for task in tasks)
    parts = [count_of(runs, "finished job"), count_of(methods, "method")]
    for state in ("failed", "unfinished", "unreadable"):
        count = sum(job.state == state for _, job in without_result)
        parts += [f"{count} {state}"] if count else []
    return " · ".join(parts)


def pack(text: str) -> str:
    """Compress a text by gzip and encode it as base64: small, and free of markup.

    Example:
        >>> gzip.decompress(base64.b64decode(pack("</script>")))
        b'</script>'
    """
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@functools.cache
def packed_plotly() -> str:
    """Return plotly.js, packed: 2 MB instead of 5.

    Raises:
        ConfigError: If plotly is not installed.
    """
    plotly = import_optional("the page of the report", "report", "plotly.offline")
    return pack(plotly.get_plotlyjs())


def _read_asset(name: str) -> str:
    return (files("regrow.report") / "assets" / name).read_text(encoding="utf-8")
