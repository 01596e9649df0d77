# SPDX-License-Identifier: MIT
"""Write_report."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from regrow.report.load import below, find_jobs, read_jobs
from regrow.report.page import page, summary
from regrow.report.table import csv_text
from regrow.report.tasks import across, make_tasks
from regrow.utils.errors import ConfigError, DataError, write_error

TABLE = "results.csv"


PAGE = "report.html"


class WrittenReport(NamedTuple):
    """What a report says in short.

    Attributes:
        table: results.csv.
        page: report.html.
        summary: How many jobs there are of what state.
        warnings: How many reasons there are to doubt a comparison.
    """

    table: Path
    page: Path
    summary: str
    warnings: int


def write_report(folder: Path, jobs: Sequence[Path] | None = None) -> WrittenReport:
    """Writes results.csv and report.html into a folder, from the results of its jobs.

    Only their files are read: result.json, failed.json, run.json and the logged metrics. What
    cannot be read is shown with its reason and stops nothing else. Both files are written aside
    and renamed, so that several processes may do this at once.

    Args:
        folder: Where the files go.
        jobs: The jobs' folders; None: all below `folder`.

    Raises:
        DataError: If `folder` is not there, or no job is found.
        ConfigError: If plotly is not installed; results.csv is written then.

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
            "holds runs"
        )
    found = find_jobs(folder) if jobs is None else [Path(job) for job in jobs]
    if not found:
        raise DataError(
            f"no job below {str(folder)!r} (a folder with {'result.json'!r}): "
            "`regrow train recipe=digits/gmp` makes one in outputs/, then `regrow report outputs`"
        )
    read = read_jobs(found)
    tasks = make_tasks(read.runs, [*below(folder, [run.folder for run in read.runs])])
    lost = [*zip(below(folder, [job.folder for job in read.lost]), read.lost, strict=True)]
    table, target = folder / TABLE, folder / PAGE
    replace(table, csv_text([row for task in tasks for row in task.rows]))
    title = f"regrow: {folder.resolve().name}"
    copies = [*below(folder, read.copies)]
    try:
        text = page(title, tasks, lost, copies, datetime.now())
    except ConfigError as error:
        raise ConfigError(f"{table} is written, {PAGE} is not: {error}") from error
    replace(target, text)
    warnings = len(across(tasks)) + sum(len(task.advice) for task in tasks)
    return WrittenReport(table, target, summary(tasks, lost), warnings)


def replace(path: Path, text: str) -> None:
    """Writes beside a file, then renames: a reader sees the old text or the new one."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        aside.write_text(text, encoding="utf-8", newline="\n")
        os.replace(aside, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
