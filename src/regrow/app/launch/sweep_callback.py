# SPDX-License-Identifier: MIT
"""Hydra callback that records the jobs of a sweep and builds its report."""

from __future__ import annotations

import math
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from regrow.app.config.run_dirs import sweep_folder
from regrow.app.launch.failures import Failed
from regrow.app.launch.search import is_search, prepare
from regrow.app.launch.sweep import REPORT, Sweep, rebuild, summarize_failures
from regrow.app.training.locks import exclusive, exit_with_parent
from regrow.report.load import FILE
from regrow.utils.errors import RegrowError

# The sweep that this process started, and the lock of its folder.
_started: list[tuple[Sweep, ExitStack]] = []


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
            print(f"error: {error}", file=sys.stderr)
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
    parsed = OverridesParser.create().parse_overrides(words)
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
