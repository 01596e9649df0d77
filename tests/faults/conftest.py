# SPDX-License-Identifier: MIT
"""Makes the toys of the callbacks' tests importable; Lightning writes below the working folder."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "callbacks")]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.filterwarnings("ignore:.*:UserWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore:.*litlogger.*"))
