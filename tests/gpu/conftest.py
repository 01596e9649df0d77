# SPDX-License-Identifier: MIT
"""Run each test on a CUDA device; skip it where there is none.

`REGROW_TEST_DEVICE=cpu pytest -m gpu` runs the bodies on the CPU, where they can, to check them.
"""

import os
from pathlib import Path

import pytest
import torch

# Deterministic matrix products; read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("ignore:.*:UserWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore:.*litlogger.*"))


@pytest.fixture
def device(monkeypatch, tmp_path):
    """The device of the test, which runs in a folder of its own, as Lightning writes below it."""
    chosen = torch.device(os.environ.get("REGROW_TEST_DEVICE", "cuda"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.chdir(tmp_path)
    return chosen


@pytest.fixture
def cuda(device):
    """The device, for features that only CUDA has."""
    if device.type != "cuda":
        pytest.skip("a feature of CUDA alone")
    return device
