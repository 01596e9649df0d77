# SPDX-License-Identifier: MIT
"""A sweep: its folder with notes of its jobs, its report, and the callback that writes both."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from regrow.app.config.run_dirs import folder_name, sweep_folder
from regrow.app.launch.failures import Failed
from regrow.app.launch.search import is_search, prepare
from regrow.app.training.processes import exclusive, exit_with_parent
from regrow.io.files import read_json, write_json
from regrow.report.load import FILE
from regrow.utils.errors import RegrowError, one_line

NOTES = "jobs"
REPORT = "report.html"
BAR = 20  # characters
_log = logging.getLogger("regrow")
# The sweep that this process started, and the lock of its folder.
_started: list[tuple[Sweep, ExitStack]] = []


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
        """Write the note of a job to a file: "started", "done", "skipped" or "failed", and why."""
        where = Path(os.path.relpath(job, self.folder)).as_posix()
        content = {"job": where, "state": state, "message": message, "start": self.start}
        write_json(self.folder / NOTES / f"{folder_name(where).lstrip('.')}.json", content)

    def notes(self) -> list[dict[str, str]]:
        """Read the notes of this start, with job folders relative to the working directory."""
        notes = [note for note in _notes(self.folder) if note["start"] == self.start]
        return [{**note, "job": os.path.relpath(self.folder / note["job"])} for note in notes]

    def progress(self) -> str:
        """Describe how many jobs of this start are done, and the time left at their pace."""
        states = Counter(note["state"] for note in self.notes())
        return describe_progress(states, self.jobs, time.time() - self.began)


def describe_progress(states: Mapping[str, int], jobs: int | None, seconds: float) -> str:
    """Describe the number of jobs by state, of `jobs` in all, and the time left.

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
    jobs = [Path(os.path.normpath(folder / note["job"])) for note in _notes(folder)]
    return [job for job in jobs if job.is_dir()]


def rebuild(folder: Path) -> tuple[str, ...]:
    """Build the report of a sweep, one process at a time; return its warnings, log an error."""
    try:
        from regrow.report.write import write_report

        with FileLock(folder / ".report.lock"):
            return write_report(folder, sweep_jobs(folder)).warnings
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _log.warning("the report in %s was not built: %s", os.path.relpath(folder), reason)
        return ()


def summarize_failures(notes: Sequence[Mapping[str, str]]) -> list[str]:
    """Describe failed and unfinished jobs, one line each; empty if there are none."""
    lines = []
    for state, verb in (("failed", "failed"), ("started", "did not end")):
        lost = [note for note in notes if note["state"] == state]
        if lost:
            lines.append(f"{len(lost)} of {len(notes)} jobs {verb}:")
        for note in lost:
            text = " ".join(note["message"].split())
            lines.append(f"  {note['job']}: {text}" if text else f"  {note['job']}")
    return [*lines, "the same command resumes this sweep"] if lines else []


def _notes(folder: Path) -> list[dict[str, str]]:
    return [read_json(path) for path in sorted((folder / NOTES).glob("*.json"))]


class SweepNotes(Callback):
    """Record each job in the folder of its sweep, and build the report there after each.

    `folder` is the parent of the folders of sweeps. Launchers copy this callback to the processes
    of their jobs. Single runs are not recorded.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.sweep: Sweep | None = None
        self.result: int | None = None
        self.starter = os.getpid()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        name = sweep_folder(config.hydra.overrides.task)
        folder = Path(config.hydra.runtime.cwd, self.folder, name)
        folder.mkdir(parents=True, exist_ok=True)
        self.sweep, lock = Sweep(folder, count_jobs(config)), ExitStack()
        try:
            lock.enter_context(exclusive(folder, "sweep", "change an override"))
            _started.append((self.sweep, lock))
            prepare(config, folder)
        except RegrowError as error:
            # Hydra turns any other exception here into a warning
            print(f"error: {one_line(error)}", file=sys.stderr)
            raise SystemExit(1) from error

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self.sweep is not None:
            joblib = str(config.hydra.launcher._target_).endswith(".JoblibLauncher")
            if joblib and os.getpid() != self.starter:  # n_jobs=1 starts no other
                exit_with_parent(self.starter)
            job = Path(config.hydra.runtime.output_dir)
            self.result = _written(job)
            self.sweep.note(job, "started")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if self.sweep is not None:
            job, returned = Path(config.hydra.runtime.output_dir), job_return._return_value
            message = returned.message if isinstance(returned, Failed) else ""
            failed = isinstance(returned, Failed | BaseException)
            if not failed and self.result is not None and self.result == _written(job):
                self.sweep.note(job, "skipped")
                return
            self.sweep.note(job, "failed" if failed else "done", message)
            rebuild(self.sweep.folder)
            print(self.sweep.progress())


def count_jobs(config: DictConfig) -> int | None:
    """Count the jobs of a sweep; None if a sweeper of another package decides."""
    if is_search(config.hydra.sweeper):
        trials = config.hydra.sweeper.get("n_trials")
        return None if trials is None else int(trials)
    params = config.hydra.sweeper.params or {}
    words = [str(word) for word in config.hydra.overrides.task]
    given = {word.partition("=")[0] for word in words}
    words += [f"{key}={value}" for key, value in params.items() if key not in given]
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(words)
    return math.prod(len([*one.sweep_iterator()]) for one in parsed if one.is_sweep_override())


def _written(job: Path) -> int | None:
    """When the result of a job was written, in ns; None if it has none."""
    result = job / FILE
    return result.stat().st_mtime_ns if result.is_file() else None


def finish_sweep() -> bool:
    """Print how the sweep of this process ended, if any; return whether all jobs succeeded.

    Not `on_multirun_end`: Hydra skips that hook after an error.
    """
    succeeded = True
    while _started:
        sweep, lock = _started.pop()
        warnings = rebuild(sweep.folder) if (notes := sweep.notes()) else ()
        for line in (lost := summarize_failures(notes)):
            print(line, file=sys.stderr)
        succeeded = succeeded and not lost
        if skipped := sum(note["state"] == "skipped" for note in notes):
            print(f"{skipped} of {len(notes)} jobs had finished before (force=true repeats them)")
        for text in warnings:
            print(f"warning: {text}")
        report = sweep.folder / REPORT
        if notes and report.is_file():
            print(f"report: {os.path.relpath(report)}")
        lock.close()
    return succeeded
