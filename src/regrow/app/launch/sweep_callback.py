# SPDX-License-Identifier: MIT
"""Hydra callback that records the jobs of a sweep and builds its report."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from regrow.app.config.run_dirs import sweep_folder
from regrow.app.launch.failures import Failed
from regrow.app.launch.search import prepare
from regrow.app.launch.sweep import REPORT, Sweep, rebuild, summarize_failures
from regrow.app.training.locks import exclusive, exit_with_parent
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
        self.starter = os.getpid()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        name = sweep_folder(config.hydra.overrides.task)
        folder = Path(config.hydra.runtime.cwd, self.folder, name)
        folder.mkdir(parents=True, exist_ok=True)
        self.sweep, lock = Sweep(folder), ExitStack()
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
            self.sweep.note(Path(config.hydra.runtime.output_dir), "started")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if self.sweep is not None:
            returned = job_return._return_value
            message = returned.message if isinstance(returned, Failed) else ""
            state = "failed" if isinstance(returned, Failed | BaseException) else "done"
            self.sweep.note(Path(config.hydra.runtime.output_dir), state, message)
            rebuild(self.sweep.folder)


def finish_sweep() -> bool:
    """Print how the sweep of this process ended, if any; return whether all jobs succeeded.

    Not `on_multirun_end`: Hydra skips that hook after an error.
    """
    succeeded = True
    while _started:
        sweep, lock = _started.pop()
        if notes := sweep.notes():
            rebuild(sweep.folder)
        for line in (lost := summarize_failures(notes)):
            print(line, file=sys.stderr)
        succeeded = succeeded and not lost
        report = sweep.folder / REPORT
        if notes and report.is_file():
            print(f"report: {os.path.relpath(report)}")
        lock.close()
    return succeeded
