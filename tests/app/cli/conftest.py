# SPDX-License-Identifier: MIT
"""Runs sub-commands in this process."""

import logging
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from regrow.app.cli.main import main


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs `regrow WORDS...` in this process and an empty folder: status, and lines of stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    handlers, level = logging.root.handlers[:], logging.root.level

    def run(*words):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
        return status, capfd.readouterr().err.splitlines()

    yield run
    GlobalHydra.instance().clear()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
