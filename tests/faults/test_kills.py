# SPDX-License-Identifier: MIT
"""Resumes after SIGKILL and SIGTERM at random moments are bit-exact."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fault_scenarios import SCENARIOS

HELPERS = Path(__file__).parents[1] / "helpers"


def campaign(folder, checkout, seed, kills, names):
    words = [str(folder), str(seed), str(kills), *names]
    paths = map(str, (HELPERS, checkout / "src"))
    done = subprocess.run(
        [sys.executable, "-m", "lightning_alias", HELPERS / "kill_fits.py", *words],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.guard
@pytest.mark.slow
def test_repeatedly_killed_fits_resume_exactly(tmp_path, checkout):
    seen = campaign(tmp_path, checkout, 0, 50, ["gradual", "rigl"])
    assert seen["broken"] == []
    assert seen["wrong"] == []
    assert seen["kills"] >= 50
    assert min(seen["timer"], seen["term"], seen["point"]) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_every_scenario_resumes_exactly_after_kills(seed, tmp_path, checkout):
    seen = campaign(tmp_path, checkout, seed, 100, [*SCENARIOS])
    assert seen["broken"] == []
    assert seen["wrong"] == []
    assert seen["runs"] >= 2 * len(SCENARIOS)
