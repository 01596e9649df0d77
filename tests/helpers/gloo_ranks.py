# SPDX-License-Identifier: MIT
"""Run a program on several ranks over gloo, one process per rank."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
EXIT_CHECK = HERE / "exit_check"  # in PYTHONPATH: a process that leaves a group fails
BEFORE = """
import sys, torch
from pathlib import Path
from lightning_alias import install_alias
install_alias()
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader
from tiny_fits import *

RANK, WORLD, OUT = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

def job(*callbacks, ddp=None, **kw):
    kw = {"use_distributed_sampler": True, "max_epochs": 2} | kw
    return trainer(*callbacks, devices=1, num_nodes=WORLD,
                   strategy=DDPStrategy(process_group_backend="gloo", **(ddp or {})), **kw)

def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}

said = {}
"""
AFTER = """
torch.save(said, OUT / f"{RANK}.pt")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def run(program: str, folder: Path, ranks: int = 2, timeout: float = 300) -> list[dict]:
    """What each rank has put into `said`, in order.

    Args:
        program: Knows RANK, WORLD, OUT, `job(*callbacks)` for a Trainer, and `toys`.
        folder: For what it says.
        ranks: How many.
        timeout: Seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(HERE), str(EXIT_CHECK), str(HERE.parents[1] / "src")])
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths,
    }  # fmt: skip
    jobs = []
    for rank in range(ranks):
        command = [sys.executable, "-c", BEFORE + program + AFTER, str(rank), str(ranks), folder]
        own = {"NODE_RANK": str(rank), "GROUP_RANK": str(rank)}
        with (folder / f"{rank}.log").open("w") as log:
            job = subprocess.Popen(
                command, env=os.environ | shared | own, cwd=folder, stdout=log, stderr=log
            )
        jobs.append(job)
    try:
        for rank, job in enumerate(jobs):
            status = job.wait(timeout)
            assert status == 0, (folder / f"{rank}.log").read_text()[-3000:]
    finally:
        for job in jobs:
            job.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
