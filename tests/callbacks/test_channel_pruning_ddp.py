# SPDX-License-Identifier: MIT
"""Two processes prune the same channels and end with the same small model."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = """
import sys, torch
from tiny_channel_fits import Net, left, pruning
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from regrow.utils.errors import ConfigError, StateError
from torch.utils.data import DataLoader
from tiny_fits import SGD, samples, trainer

def job(*callbacks):
    return trainer(*callbacks, devices=1, num_nodes=2, max_epochs=2, use_distributed_sampler=True,
                   strategy=DDPStrategy(process_group_backend="gloo"))

class Early(Callback):
    said = ""

    def on_train_epoch_end(self, trainer, module):
        try:
            channels.compact()
        except StateError as error:
            self.said = str(error)

early = Early()
settings = {"compact": "event", "schedule": "one_shot", "recalibrate": 2}
channels, module = pruning(criterion="activation", **settings), Net(SGD)  # of all ranks
made = job(channels, early)
made.fit(module, DataLoader(samples(64), 4, shuffle=True))
state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
kinds = [entry["kind"] for entry in channels.history]
try:
    job(pruning(0.3, of="latency")).fit(Net(SGD), DataLoader(samples(64), 4))
    refused = ""
except ConfigError as error:
    refused = str(error)
torch.save({"state": state, "kinds": kinds, "left": left(module), "refused": refused,
            "early": early.said,
            "world": made.world_size, "kept": channels.plan.kept}, sys.argv[1])
"""


@pytest.mark.guard
@pytest.mark.slow
def test_ranks_cut_the_same_channels(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parents[1] / "helpers"
    paths = os.pathsep.join([str(here), str(here.parents[1] / "src")])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
              "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}  # fmt: skip
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / f"{rank}.pt")],
            env=os.environ | shared | {"NODE_RANK": str(rank), "GROUP_RANK": str(rank)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for job in jobs:
            out, _ = job.communicate(timeout=200)
            assert job.returncode == 0, out[-3000:]
    finally:
        for job in jobs:
            job.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["world"] == 2
    assert first["left"] == second["left"] == 8
    assert first["kinds"] == second["kinds"] == ["prune", "compact"]
    assert first["kept"].keys() == second["kept"].keys()
    for name, dims in first["kept"].items():
        assert all(torch.equal(keep, second["kept"][name][dim]) for dim, keep in dims.items())
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
    assert "write of='macs', or train on one device" in first["refused"]
    assert "call compact() after it" in first["early"]
