# SPDX-License-Identifier: MIT
"""HTML page."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files

from regrow.report.advice import Advice, count_of
from regrow.report.load import Lost
from regrow.report.page_data import payload
from regrow.report.tasks import Task, across
from regrow.utils.imports import import_optional

_SCRIPTS = ("base.js", "accuracy.js", "table.js", "run.js", "main.js")


_SHOWN = 6  # findings of one warning before the rest is folded away


def page(
    title: str,
    tasks: Sequence[Task],
    lost: Sequence[tuple[str, Lost]],
    copies: Sequence[str],
    when: datetime,
) -> str:
    """The whole page as HTML.

    Args:
        title: Its heading.
        tasks: What was measured.
        lost: Jobs without a result, with their names.
        copies: Names of jobs whose run is there twice.
        when: Now.

    Raises:
        ConfigError: If plotly is not installed.
    """
    found = payload(tasks)
    parts = {
        "title": escape(title),
        "when": when.isoformat(" ", "minutes"),
        "summary": escape(summary(tasks, lost)),
        "style": _asset("style.css"),
        "warnings": _warnings(tasks),
        "lost": _lost(lost),
        "copies": _copies(copies),
        "nothing": "" if found["rows"] else "hidden",
        "plotly": plotly_packed(),
        "data": packed(json.dumps(found, separators=(",", ":"), allow_nan=False)),
        "script": "\n".join(_asset(name) for name in _SCRIPTS),
    }
    return fill(_asset("page.html"), parts)


def summary(tasks: Sequence[Task], lost: Sequence[tuple[str, Lost]]) -> str:
    """One line: how many jobs of what there are."""
    runs = {id(row.run) for task in tasks for row in task.rows}
    methods = sum(len({row.values["method"] for row in task.rows}) for task in tasks)
    parts = [count_of(len(runs), "finished job"), count_of(methods, "method")]
    for state in ("failed", "unfinished", "unreadable"):
        count = sum(job.state == state for _, job in lost)
        parts += [f"{count} {state}"] if count else []
    return " · ".join(parts)


def fill(template: str, parts: Mapping[str, str]) -> str:
    """A template with each `{{name}}` replaced; what is put in is not looked at again.

    Example:
        >>> fill("<p>{{a}}</p>", {"a": "{{b}}", "b": ""})
        '<p>{{b}}</p>'
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def packed(text: str) -> str:
    """Text as gzip in base64: a seventh of what a long table needs, and no markup whatever it says.

    Example:
        >>> gzip.decompress(base64.b64decode(packed("</script>")))
        b'</script>'
    """
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@functools.cache
def plotly_packed() -> str:
    """plotly.js, packed: 2 MB instead of 5.

    Raises:
        ConfigError: If plotly is not installed.
    """
    return packed(
        import_optional("the page of the report", "report", "plotly.offline").get_plotlyjs()
    )


def _asset(name: str) -> str:
    return (files("regrow.report") / "assets" / name).read_text(encoding="utf-8")


def _warnings(tasks: Sequence[Task]) -> str:
    several = len(tasks) > 1
    blocks = [_advice(one) for one in across(tasks)]
    for task in tasks:
        if task.advice:
            blocks += [f"<h3>{escape(task.name)}</h3>"] if several else []
            blocks += [_advice(one) for one in task.advice]
    if not tasks:
        return ""
    if not blocks:
        return '<p class="fine">Nothing was found that makes the comparison unfair.</p>'
    return "\n".join(blocks)


def _advice(advice: Advice) -> str:
    """A warning: what was found is open up to a few findings, then folded."""
    items = [f"<li>{escape(text)}</li>" for text in advice.found]
    if len(items) > _SHOWN:
        rest = "".join(items[_SHOWN:])
        folded = f"<details><summary>{len(items) - _SHOWN} more</summary><ul>{rest}</ul></details>"
    else:
        folded = ""
    return (
        f'<section class="warning"><h4>{escape(advice.title)}</h4>'
        f"<ul>{''.join(items[:_SHOWN])}</ul>{folded}"
        f'<p class="todo">{escape(advice.todo)}</p></section>'
    )


def _lost(lost: Sequence[tuple[str, Lost]]) -> str:
    if not lost:
        return ""
    rows = "\n".join(
        f'<tr class="{escape(job.state)}"><td>{escape(job.state)}</td><td>{escape(name)}</td>'
        f"<td>{escape(job.reason)}</td><td>{escape(job.words)}</td><td>{escape(job.when)}</td></tr>"
        for name, job in lost
    )
    head = "".join(
        f'<th scope="col">{h}</th>' for h in ("State", "Job", "Reason", "Asked for", "Last sign")
    )
    return (
        '<section class="card" id="lost"><h2>Jobs without a result</h2><div class="scroll" '
        f'tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</section>"
    )


def _copies(copies: Sequence[str]) -> str:
    if not copies:
        return ""
    names = ", ".join(escape(name) for name in copies)
    return f'<p class="fine">The same run is there twice and counted once: {names}.</p>'
