# SPDX-License-Identifier: MIT
"""Set one thread, garbage collection and the profiles of Hypothesis; fixtures that run commands."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from gloo_ranks import EXIT_CHECK
from hypothesis import settings
from lightning_alias import install_alias

# Several test processes share few cores: more threads each would only wait for one another.
torch.set_num_threads(1)
# Each Trainer asks for the entry points of all packages: a tenth of a short fit is reading them.
pytest.MonkeyPatch().setattr("importlib.metadata.entry_points", cache(entry_points))
install_alias()

gc.disable()  # until all tests are collected: what they import stays


def pytest_collection_finish() -> None:
    """Let no collection of garbage search modules and thousands of tests: half a second each."""
    gc.freeze()
    gc.enable()


collect_ignore_glob = ["helpers/*"]  # no tests, and imports that not every torch has

settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.register_profile("full", deadline=None, max_examples=100)  # `make slow`
settings.load_profile("ci" if os.environ.get("CI") else "default")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The top of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def python(checkout: Path, tmp_path: Path) -> Run:
    """Runs `python WORDS...` in an empty folder, with this checkout's regrow."""
    paths = os.pathsep.join([str(checkout / "src"), str(EXIT_CHECK)])

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        plain = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "COLUMNS")}
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=plain | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def regrow(python: Run) -> Run:
    """Runs `regrow WORDS...`."""

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return python("-m", "regrow", *words, **env)

    return run
