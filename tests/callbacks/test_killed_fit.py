# SPDX-License-Identifier: MIT
"""A fit killed by SIGKILL at a random moment resumes from last.ckpt exactly."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_fit import run, same
from tiny_fits import read


def killed_at(folder, checkout, step, delay):
    """Runs until a checkpoint of `step` or later is there, then a while, then kills."""
    script = Path(__file__).parents[1] / "helpers" / "killed_fit.py"
    process = subprocess.Popen(
        [sys.executable, script, folder],
        env=os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last, until = folder / "last.ckpt", time.monotonic() + 120
    try:
        while time.monotonic() < until and process.poll() is None:
            if last.exists() and read(last)["global_step"] >= step:
                break
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "it was still running"
    return read(last)["global_step"]


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_fit_killed_twice_resumes_exactly(seed, tmp_path, checkout):
    draw = random.Random(seed)
    whole, folder = run(tmp_path / "whole"), tmp_path / "killed"
    first = killed_at(folder, checkout, draw.randrange(60), draw.uniform(0, 0.05))
    assert 0 < first < 200
    second = killed_at(folder, checkout, first + draw.randrange(40), draw.uniform(0, 0.05))
    assert first <= second < 200
    assert same(run(folder), whole)
