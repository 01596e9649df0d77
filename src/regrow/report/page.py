# SPDX-License-Identifier: MIT
"""Render the report as one HTML page."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template

from regrow.report.advice import Advice, count_of
from regrow.report.load import JobWithoutResult
from regrow.report.page_data import make_page_data
from regrow.report.tasks import Task, cross_task_advice
from regrow.utils.imports import import_optional

NamedJobs = Sequence[tuple[str, JobWithoutResult]]
_SCRIPTS = ("base.js", "accuracy.js", "table.js", "run.js", "main.js")
_SHOWN = 6  # findings of one warning that are shown without a click


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
        ConfigError: If plotly is not installed.
    """
    data = make_page_data(tasks)
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        when=when.isoformat(" ", "minutes"),
        summary=escape(summarize(tasks, without_result)),
        style=_asset("style.css"),
        warnings=_warnings(tasks),
        without_result=_jobs_table(without_result),
        copies=_copies(copies),
        hidden="" if data["rows"] else "hidden",
        plotly=packed_plotly(),
        data=pack(json.dumps(data, separators=(",", ":"), allow_nan=False)),
        script="\n".join(_asset(name) for name in _SCRIPTS),
    )


def summarize(tasks: Sequence[Task], without_result: NamedJobs) -> str:
    """Count jobs and methods, in one line."""
    runs = {id(row.run) for task in tasks for row in task.rows}
    methods = sum(len({row.values["method"] for row in task.rows}) for task in tasks)
    parts = [count_of(len(runs), "finished job"), count_of(methods, "method")]
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


def _asset(name: str) -> str:
    return (files("regrow.report") / "assets" / name).read_text(encoding="utf-8")


def _warnings(tasks: Sequence[Task]) -> str:
    blocks = [_warning(advice) for advice in cross_task_advice(tasks)]
    for task in tasks:
        if task.advice:
            blocks += [f"<h3>{escape(task.name)}</h3>"] if len(tasks) > 1 else []
            blocks += [_warning(advice) for advice in task.advice]
    if tasks and not blocks:
        return '<p class="fine">No unfair comparison was found.</p>'
    return "\n".join(blocks)


def _warning(advice: Advice) -> str:
    """Render a warning; findings after the first few are folded."""
    items, folded = [f"<li>{escape(text)}</li>" for text in advice.findings], ""
    if len(items) > _SHOWN:
        rest = "".join(items[_SHOWN:])
        folded = f"<details><summary>{len(items) - _SHOWN} more</summary><ul>{rest}</ul></details>"
    return (
        f'<section class="warning"><h4>{escape(advice.title)}</h4>'
        f"<ul>{''.join(items[:_SHOWN])}</ul>{folded}"
        f'<p class="todo">{escape(advice.todo)}</p></section>'
    )


def _jobs_table(jobs: NamedJobs) -> str:
    if not jobs:
        return ""
    rows = [[job.state, name, job.reason, job.overrides, job.when] for name, job in jobs]
    body = "\n".join(
        f'<tr class="{row[0]}">' + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    headings = ("State", "Job", "Reason", "Overrides", "Last change")
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return (
        '<section class="card" id="without-result"><h2>Jobs without a result</h2>'
        f'<div class="scroll" tabindex="0">{table}</div></section>'
    )


def _copies(copies: Sequence[str]) -> str:
    if not copies:
        return ""
    names = ", ".join(escape(name) for name in copies)
    return f'<p class="fine">Copies of runs in other folders, not counted again: {names}.</p>'
