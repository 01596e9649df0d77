# SPDX-License-Identifier: MIT
"""Folder, job notes and report of a sweep."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from regrow.app.config.run_dirs import short
from regrow.io.files import read_json, write_json

NOTES = "jobs"


REPORT = "report.html"


_log = logging.getLogger("regrow")


Note = Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """One start of a sweep; a later one has the same folder.

    Attributes:
        folder: For the report and the notes. The jobs themselves lie where a single run would.
        start: What tells this start from those before it.
    """

    folder: Path
    start: str = field(default_factory=lambda: uuid.uuid4().hex)

    def note(self, job: Path, state: str, message: str = "") -> None:
        """Writes how far a job came: "started", "done" or "failed". No two jobs share a file."""
        where = Path(os.path.relpath(job, self.folder)).as_posix()
        content = {"job": where, "state": state, "message": message, "start": self.start}
        write_json(self.folder / NOTES / f"{short(where).lstrip('.')}.json", content)

    def notes(self) -> list[Note]:
        """Those of this start; jobs as seen from where the command runs."""
        notes = [note for note in _notes(self.folder) if note["start"] == self.start]
        return [{**note, "job": os.path.relpath(self.folder / note["job"])} for note in notes]


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / NOTES).is_dir()


def sweep_jobs(folder: Path) -> list[Path]:
    """The folders of a sweep's jobs, of all its starts, as far as they still exist."""
    jobs = [Path(os.path.normpath(folder / str(note["job"]))) for note in _notes(folder)]
    return [job for job in jobs if job.is_dir()]


def rebuild(folder: Path) -> None:
    """Builds the report of a sweep; jobs that end together do so in turn.

    A report that cannot be built is said, and stops nothing.
    """
    try:
        from regrow.report.write import write_report

        with FileLock(folder / ".report.lock"):  # whoever comes last has seen all others
            write_report(folder, sweep_jobs(folder))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _log.warning("the report in %s was not built: %s", os.path.relpath(folder), reason)


def summarize_failures(notes: Iterable[Note]) -> list[str]:
    """What there is to say of jobs that did not end well; nothing, where all did.

    Example:
        >>> ended = {"job": "a/seed=0", "state": "done", "message": ""}
        >>> lost = {"job": "a/seed=1", "state": "failed", "message": "sparsity must be in [0, 1)"}
        >>> print(*summarize_failures([ended, lost]), sep=chr(10))
        1 of 2 jobs failed:
          a/seed=1: sparsity must be in [0, 1)
        the same command goes on with this sweep
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
    return [*lines, "the same command goes on with this sweep"] if lines else []


def _notes(folder: Path) -> list[Note]:
    return [read_json(path) for path in sorted((folder / NOTES).glob("*.json"))]
