# SPDX-License-Identifier: MIT
"""Write results.csv and report.html from the results of many runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from regrow.io.files import write_text
from regrow.report.load import find_jobs, read_jobs
from regrow.report.page import render_page, summarize
from regrow.report.table import make_csv
from regrow.report.tasks import cross_task_advice, make_tasks
from regrow.utils.errors import ConfigError, DataError

TABLE, PAGE = "results.csv", "report.html"


class WrittenReport(NamedTuple):
    """The files of a report, and a summary."""

    table: Path  # results.csv
    page: Path  # report.html
    summary: str  # number of jobs by state
    warnings: tuple[str, ...]  # titles of warnings about comparisons, the values where it is one


def write_report(folder: Path, jobs: Sequence[Path] | None = None) -> WrittenReport:
    """Write results.csv and report.html into a folder, from the results of its jobs.

    Only result.json, failed.json, run.json and the logged metrics are read. Jobs that cannot be
    read are listed with the reason. Several processes may write the same report at once.

    Args:
        folder: Where the files are written.
        jobs: Folders of the jobs; None: all below `folder`.

    Raises:
        DataError: If `folder` does not exist, or no job is found.
        ConfigError: If pandas, jinja2 or plotly is not installed; results.csv needs pandas only.

    Example:
        >>> from pathlib import Path
        >>> write_report(Path("no_such_folder"))
        Traceback (most recent call last):
            ...
        regrow.utils.errors.DataError: no folder 'no_such_folder': write `regrow report outputs`...
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"no folder {str(folder)!r}: write `regrow report outputs`, or another folder that "
            "contains runs"
        )
    folders = find_jobs(folder) if jobs is None else [Path(job) for job in jobs]
    if not folders:
        raise DataError(
            f"no job below {str(folder)!r} (a folder with 'result.json'): "
            "`regrow train recipe=digits/gmp` writes one to outputs/, then `regrow report outputs`"
        )
    found = read_jobs(folders, folder)
    tasks = make_tasks(found.runs)
    table, page = folder / TABLE, folder / PAGE
    write_text(table, make_csv(task.rows for task in tasks))
    try:
        title = f"regrow: {folder.resolve().name}"
        text = render_page(title, tasks, found, datetime.now())
    except ConfigError as error:
        raise ConfigError(f"{table} is written, {PAGE} is not: {error}") from error
    write_text(page, text)
    advice = [*cross_task_advice(tasks), *(one for task in tasks for one in task.advice)]
    warnings = tuple(map(str, advice))
    return WrittenReport(table, page, summarize(tasks, found), warnings)
