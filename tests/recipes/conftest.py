# SPDX-License-Identifier: MIT
"""Makes `short_fits` importable for the tests of this folder, and writes their data once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data for every recipe."""
    from short_fits import write_data

    folder = tmp_path_factory.mktemp("small_data")
    write_data(folder)
    return folder
