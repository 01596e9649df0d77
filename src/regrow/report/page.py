# SPDX-License-Identifier: MIT
"""Render the report as one HTML page."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from collections.abc import Sequence
from datetime import datetime

from regrow.report.fairness import count_of
from regrow.report.load import JobWithoutResult
from regrow.report.page_data import load_template, make_page_data, read_asset
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
    """Render the page as HTML; `copies` are the names of jobs whose run is also elsewhere.

    Raises:
        ConfigError: If jinja2 or plotly is not installed.
    """
    warned = [("", cross_task_advice(tasks))]
    warned += [(task.name if len(tasks) > 1 else "", task.advice) for task in tasks]
    data = json.dumps(make_page_data(tasks), separators=(",", ":"), allow_nan=False)
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
    """Return plotly.js, packed: 2 MB instead of 5."""
    plotly = import_optional("the page of the report", "report", "plotly.offline")
    return pack(plotly.get_plotlyjs())
