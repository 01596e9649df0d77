# SPDX-License-Identifier: MIT
"""Warnings in programs that never import Lightning."""

import subprocess
import sys

PRUNE = """
import os, sys, warnings
import torch, regrow
for rank in (None, "0", "1"):
    os.environ.pop("RANK", None)
    if rank is not None:
        os.environ["RANK"] = rank
    net = torch.nn.Sequential(torch.nn.Linear(50, 40), torch.nn.Linear(40, 10))
    net[1].weight.data.mul_(1e-4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        regrow.prune(net, 0.9)
    found = [str(warning.message) for warning in caught]
    print(rank, any("under 1 % of the weights are kept in 1.weight" in text for text in found))
print({"lightning", "pytorch_lightning"} & {*sys.modules})
"""


def test_pruning_warns_on_the_first_rank_without_lightning():
    done = subprocess.run(
        [sys.executable, "-c", PRUNE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["None True", "0 True", "1 False", "set()"]
