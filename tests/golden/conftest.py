# SPDX-License-Identifier: MIT
"""Makes the modules of this folder importable."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    """Lightning writes below the working folder."""
    monkeypatch.chdir(tmp_path)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
