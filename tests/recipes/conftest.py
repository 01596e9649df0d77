# SPDX-License-Identifier: MIT
"""Small data for every recipe, written once."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data for every recipe."""
    from short_recipe_fits import write_data

    folder = tmp_path_factory.mktemp("small_data")
    write_data(folder)
    return folder
