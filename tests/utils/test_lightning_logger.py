# SPDX-License-Identifier: MIT
"""Who speaks: rank 0, by the logger of the Lightning that was imported first."""

import os
import subprocess
import sys

import lightning.pytorch
import pytest
import pytorch_lightning
from slow_cases import mark_rest_slow

# tests may import `lightning` by an alias, programs cannot
INSTALLED = sorted({lightning.pytorch.__name__, pytorch_lightning.__name__})
PROGRAM = """
import logging
import {first}
import lightning_utilities.core.rank_zero as rank_zero
import regrow
regrow.MagnitudePruning, regrow.ChannelPruning, regrow.Rewind
print(rank_zero.log.name)
"""


@pytest.mark.parametrize("first", mark_rest_slow(INSTALLED, INSTALLED[-1:]))
def test_importing_regrow_does_not_move_log_lines(first):
    program = [sys.executable, "-c", PROGRAM.format(first=first)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{first}.utilities.rank_zero"]


@pytest.mark.parametrize(("rank", "said"), [(None, 1), ("0", 1), ("1", 0)])
def test_a_program_without_lightning_is_warned_on_rank_zero(rank, said):
    program = "from regrow.utils.logging import warn; warn('once')"
    env = {key: value for key, value in os.environ.items() if key != "RANK"}
    if rank is not None:
        env["RANK"] = rank
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("UserWarning: once") == said
