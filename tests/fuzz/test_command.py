# SPDX-License-Identifier: MIT
"""Random configurations through the command: a result, or an error that says what to write."""

import contextlib
import io
import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from fuzz_overrides import QUICK, command_lines
from fuzz_sizes import few, many
from hypothesis import event, given

from regrow.app.cli.main import main

# errors of ours; of Hydra, about the words themselves
DESIGNED = re.compile(r"^error: \S+", re.MULTILINE)
HYDRA = re.compile(r"Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace")


def run(words):
    """Exit status and what was said on the error stream, from within a folder of its own."""
    said, before, threads = io.StringIO(), Path.cwd(), torch.get_num_threads()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                try:
                    status = main(["train", *words])
                except SystemExit as stop:
                    status = stop.code
            results = [
                json.loads(file.read_text())
                for file in Path().rglob("outputs/digits/*/**/result.json")
            ]
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)
            torch.set_default_dtype(torch.float32)
    return status, said.getvalue(), results


def check(words):
    status, said, results = run(words)
    own = words[1 + len(QUICK) :]
    event(f"status {status}")
    assert "Traceback" not in said, f"{words[0]} {own}\n{said[-3000:]}"
    if status == 0:
        assert len(results) == 1, f"no result of {words}"
        assert results[0]["dense"]["accuracy"] >= 0
    else:
        assert status == 1, f"status {status} of {words}"
        assert DESIGNED.search(said) or HYDRA.search(said), f"{words[0]} {own}\n{said}"
        assert not results


@few(4)
@given(command_lines())
def test_command_gives_a_result_or_a_clear_error(words):
    check(words)


@pytest.mark.slow
@many(400)
@given(command_lines())
def test_command_gives_a_result_or_a_clear_error_many_times(words):
    check(words)
