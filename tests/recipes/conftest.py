# SPDX-License-Identifier: MIT
"""A folder for small data of the recipes, which `short_recipe_fits.tiny` writes when asked."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("small_data")
