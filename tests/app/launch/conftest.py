# SPDX-License-Identifier: MIT
"""Run sweeps of tiny jobs, in this process or in a separate one."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from regrow.app.launch.hydra_app import launch

TINY = (
    "trainer.max_epochs=1",
    "latency.repeats=3",
    "~callbacks.progress",
    "+trainer.enable_progress_bar=false",
)


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Overrides that make any job of these sweeps small."""
    return TINY


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs `regrow train -m WORDS...` in this process and an empty folder; gives its status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    handlers, level = logging.root.handlers[:], logging.root.level

    def run(*words: str) -> int:
        try:
            launch("train", ["-m", *TINY, *words])
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return 0

    yield run
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, list[Path]]]:
    """Replace the building of reports by a record of their folders and jobs."""
    asked: list[tuple[Path, list[Path]]] = []

    def write_report(folder: Path, jobs: list[Path] | None = None) -> None:
        asked.append((folder, list(jobs or ())))
        (folder / "report.html").write_text("a report")

    module = types.ModuleType("regrow.report.write")
    module.write_report = write_report
    monkeypatch.setitem(sys.modules, "regrow.report.write", module)
    return asked


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def begin(checkout: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `regrow train -m WORDS...` in its own process session, killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: str, **env: str) -> subprocess.Popen[str]:
        paths = f"{checkout / 'src'}{os.pathsep}{tmp_path}"
        environ = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | env
        environ.pop("HYDRA_FULL_ERROR", None)
        command = [sys.executable, "-m", "regrow", "train", "-m", *TINY, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        where = {"cwd": tmp_path, "env": environ, "start_new_session": True}
        # tests that run in the background of a shell ignore SIGINT, and so would their children
        job = subprocess.Popen(command, preexec_fn=heed_interrupts, **where, **pipes)
        started.append(job)
        return job

    yield run
    for job in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


@pytest.fixture
def found(tmp_path: Path) -> Callable[[str], dict[str, dict]]:
    """The JSON files of a name below outputs: the folder of each -> content."""

    def look(name: str) -> dict[str, dict]:
        root = tmp_path / "outputs" / "digits"
        files = sorted(root.rglob(name))
        return {p.parent.relative_to(root).as_posix(): json.loads(p.read_text()) for p in files}

    return look
