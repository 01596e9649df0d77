# SPDX-License-Identifier: MIT
"""Warnings reach the user once, with and without Lightning."""

import subprocess
import sys

import pytest

PRUNE = """
import sys, warnings
import torch
import regrow
net = torch.nn.Sequential(torch.nn.Linear(400, 400), torch.nn.Linear(400, 400))
with torch.no_grad():
    net[0].weight *= 1e-3
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    masks = regrow.prune(net, 0.5)
print(len(caught), caught[0].filename if caught else "", "lightning.pytorch" in sys.modules)
print(caught[0].message if caught else "")
"""


@pytest.mark.parametrize(("rank", "count"), [(None, "1"), ("0", "1"), ("1", "0")])
def test_pruning_without_lightning_warns_on_the_first_rank(rank, count, monkeypatch):
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    done = subprocess.run([sys.executable, "-c", PRUNE], capture_output=True, text=True)
    assert not done.stderr
    words = done.stdout.split()
    assert words[0] == count
    assert "0.weight" in done.stdout or rank == "1"
