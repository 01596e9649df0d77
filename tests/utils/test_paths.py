# SPDX-License-Identifier: MIT
"""The folders of configuration files, found or missed with a clear message."""

import pytest

from regrow.utils import paths as _paths
from regrow.utils.errors import StateError


def test_folder_inside_the_package_comes_first(tmp_path, monkeypatch):
    package = tmp_path / "src" / "regrow"
    (tmp_path / "conf").mkdir()
    package.mkdir(parents=True)
    monkeypatch.setattr(_paths, "_PACKAGE", package)
    assert _paths.config_dir("conf") == tmp_path / "conf"
    (package / "conf").mkdir()
    assert _paths.config_dir("conf") == package / "conf"


def test_a_missing_folder_is_named():
    with pytest.raises(StateError, match=r"folder 'cnof' is missing: looked in .* and "):
        _paths.config_dir("cnof")
