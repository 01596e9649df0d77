# SPDX-License-Identifier: MIT
"""The folder of a sweep: notes of its jobs, and its report."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from filelock import FileLock

from regrow.app.config.run_dirs import folder_name
from regrow.io.files import read_json, write_json

NOTES = "jobs"
REPORT = "report.html"
BAR = 20  # characters
_log = logging.getLogger("regrow")


class Note(TypedDict):
    """State of one job: "started", "done", "skipped" or "failed", with the message of its error.

    `job` is its folder, relative to the folder of the sweep in the file; `start` identifies the
    start of the sweep that ran it.
    """

    job: str
    state: str
    message: str
    start: str


@dataclass(frozen=True)
class Sweep:
    """One start of a sweep, with an identifier; other starts of the same sweep share the folder.

    `folder` has the report and the notes; jobs have the folders of single runs.
    """

    folder: Path
    jobs: int | None = None  # in all; None if unknown
    start: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.time)  # seconds since the epoch

    def note(self, job: Path, state: str, message: str = "") -> None:
        """Write the note of a job to a separate file."""
        where = Path(os.path.relpath(job, self.folder)).as_posix()
        content: Note = {"job": where, "state": state, "message": message, "start": self.start}
        write_json(self.folder / NOTES / f"{folder_name(where).lstrip('.')}.json", content)

    def notes(self) -> list[Note]:
        """Read the notes of this start, with job folders relative to the working directory."""
        notes = [note for note in _notes(self.folder) if note["start"] == self.start]
        return [{**note, "job": os.path.relpath(self.folder / note["job"])} for note in notes]

    def progress(self) -> str:
        """Describe how many jobs of this start are done, and the time left at their pace."""
        states = Counter(
            note["state"] for note in _notes(self.folder) if note["start"] == self.start
        )
        return describe_progress(states, self.jobs, time.time() - self.began)


def describe_progress(states: Mapping[str, int], jobs: int | None, seconds: float) -> str:
    """Describe the jobs of a sweep by state, and the time left.

    Args:
        states: Number of jobs by state of their `Note`.
        jobs: Jobs in all; None if unknown.
        seconds: Time since the start.

    Example:
        >>> describe_progress({"done": 3, "skipped": 1, "started": 2, "failed": 1}, 16, 120)
        'sweep [######--------------] 5 of 16 jobs ended (1 skipped, 1 failed), 2 running, about \
6 minutes left'
    """
    ran = states.get("done", 0) + states.get("failed", 0)
    ended = ran + states.get("skipped", 0)
    parts = [f"{states[state]} {state}" for state in ("skipped", "failed") if states.get(state)]
    filled = BAR * ended // jobs if jobs else 0
    bar = f"[{'#' * filled}{'-' * (BAR - filled)}] " if jobs else ""
    text = f"sweep {bar}{ended}{f' of {jobs}' if jobs else ''} jobs ended"
    text += f" ({', '.join(parts)})" if parts else ""
    text += f", {states['started']} running" if states.get("started") else ""
    if jobs and ran and ended < jobs:
        minutes = seconds / ran * (jobs - ended) / 60
        text += f", about {minutes:.0f} minutes left" if minutes >= 1 else ", under a minute left"
    return text


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / NOTES).is_dir()


def sweep_jobs(folder: Path) -> list[Path]:
    """Find the existing folders of a sweep's jobs, of all its starts."""
    jobs = [Path(os.path.normpath(folder / str(note["job"]))) for note in _notes(folder)]
    return [job for job in jobs if job.is_dir()]


def rebuild(folder: Path) -> tuple[str, ...]:
    """Build the report of a sweep, one process at a time; return its warnings.

    An error is only logged.
    """
    try:
        from regrow.report.write import write_report

        with FileLock(folder / ".report.lock"):
            return write_report(folder, sweep_jobs(folder)).warnings
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _log.warning("the report in %s was not built: %s", os.path.relpath(folder), reason)
        return ()


def summarize_failures(notes: Iterable[Note]) -> list[str]:
    """Describe failed and unfinished jobs, one line each; empty if there are none.

    Example:
        >>> done = {"job": "a/seed=0", "state": "done", "message": ""}
        >>> failed = {"job": "a/seed=1", "state": "failed", "message": "sparsity must be in [0, 1)"}
        >>> print(*summarize_failures([done, failed]), sep=chr(10))
        1 of 2 jobs failed:
          a/seed=1: sparsity must be in [0, 1)
        the same command resumes this sweep
    """
    notes = list(notes)
    lines = []
    for state, verb in (("failed", "failed"), ("started", "did not end")):
        lost = [note for note in notes if note["state"] == state]
        if lost:
            lines.append(f"{len(lost)} of {len(notes)} jobs {verb}:")
        for note in lost:
            text = " ".join(str(note["message"]).split())
            lines.append(f"  {note['job']}: {text}" if text else f"  {note['job']}")
    return [*lines, "the same command resumes this sweep"] if lines else []


def _notes(folder: Path) -> list[Note]:
    return [read_json(path) for path in sorted((folder / NOTES).glob("*.json"))]
