# SPDX-License-Identifier: MIT
"""Warnings in programs that never import Lightning."""

import os
import subprocess
import sys

import pytest

PRUNE = """
import torch, regrow
net = torch.nn.Sequential(torch.nn.Linear(50, 40), torch.nn.Linear(40, 10))
net[1].weight.data.mul_(1e-4)
regrow.prune(net, 0.9)
"""


@pytest.mark.parametrize(("rank", "warned"), [(None, True), ("0", True), ("1", False)])
def test_pruning_warns_on_the_first_rank_without_lightning(rank, warned):
    env = {**os.environ, "RANK": rank or ""}
    env = env if rank else {name: value for name, value in env.items() if name != "RANK"}
    done = subprocess.run(
        [sys.executable, "-c", PRUNE], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("under 1 % of the weights are kept in 1.weight" in done.stderr) is warned
