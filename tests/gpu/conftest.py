# SPDX-License-Identifier: MIT
"""Run each test on a CUDA device; skip it where there is none.

Without one, `REGROW_TEST_DEVICE=cpu make gpu` runs what a CPU can do too, to check the tests, and
`REGROW_TEST_DEVICE=stand_in make gpu` runs them on a device that computes on the CPU but refuses
operators on tensors of two devices.
"""

import os
from pathlib import Path

import pytest
import torch

KIND = os.environ.get("REGROW_TEST_DEVICE", "cuda")
if KIND == "stand_in":
    import stand_in_device

    stand_in_device.register()

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
    chosen = torch.device(KIND)
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


@pytest.fixture
def real_device(device):
    """The device, for features that the stand-in lacks: compilers and process groups."""
    if device.type == "stand_in":
        pytest.skip("no compiler and no process group for the stand-in")
    return device
