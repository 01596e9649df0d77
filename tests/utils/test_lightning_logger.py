# SPDX-License-Identifier: MIT
"""Log lines of Lightning stay with the package imported first: people silence them there."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging
import {first}
import lightning_utilities.core.rank_zero as rank_zero
import regrow
regrow.MagnitudePruning, regrow.ChannelPruning, regrow.Rewind
print(rank_zero.log.name)
"""


@pytest.mark.parametrize("first", ["lightning.pytorch", "pytorch_lightning"])
def test_importing_regrow_does_not_move_log_lines(first):
    program = [sys.executable, "-c", PROGRAM.format(first=first)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{first}.utilities.rank_zero"]
