# SPDX-License-Identifier: MIT
"""A user's program over the public names is clean under `mypy --strict`."""

import importlib.util
import subprocess
import sys

import pytest

if importlib.util.find_spec("mypy") is None:
    pytest.skip("mypy is not installed", allow_module_level=True)

PROGRAM = '''\
from pathlib import Path

import regrow
import torch
from lightning.pytorch import LightningModule, Trainer
from regrow import (
    AccuracyBudget,
    ChannelPruning,
    Cubic,
    DynamicSparseTraining,
    LearnedMasks,
    MagnitudePruning,
    PruneAtInit,
    RandomState,
    Regrow,
    Rewind,
    SparseEarlyStopping,
    SparseModelCheckpoint,
    SparsityMonitor,
)
from torch import Tensor, nn


class Monitor(SparsityMonitor):
    """A callback of one's own."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print(trainer.global_step)


def score(weight: Tensor, grad: Tensor | None) -> Tensor:
    return weight.abs()


def fit(module: LightningModule, folder: Path) -> float:
    pruning = MagnitudePruning(
        0.9, schedule=Cubic("1ep", "4ep", "1ep"), criterion=score, layers={"*.fc.weight": 0.5}
    )
    trainer = Trainer(
        callbacks=[
            pruning,
            Regrow(at="5ep", fraction=0.2),
            AccuracyBudget("accuracy", 0.01),
            Monitor(),
            RandomState(),
            SparseEarlyStopping("accuracy", mode="max"),
            SparseModelCheckpoint(folder, monitor="accuracy"),
        ]
    )
    trainer.fit(module)
    masks: dict[str, Tensor] = dict(pruning.masks)
    steps = [entry["step"] for entry in pruning.history]
    pruning.unprune()
    pruning.regrow(fraction=0.1, by="random")
    return pruning.sparsity + len(masks) + len(steps)


METHODS = [
    ChannelPruning(0.5, of="macs"),
    DynamicSparseTraining(0.9, grow="gradient"),
    LearnedMasks("str", 0.9),
    PruneAtInit(0.9, method="snip"),
    Rewind("500it"),
]


def plain(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    masks = regrow.prune(model, 0.9, distribution="erk")
    regrow.enforce(model, masks, optimizer)
    regrow.export(model, "model.onnx", torch.zeros(1, 6))
    return regrow.sparsity(model)
'''


def check(program, checkout, folder, **env):
    (folder / "program.py").write_text(program)
    words = ("-m", "mypy", "--strict", "--follow-imports=silent", "program.py")
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"MYPYPATH": str(checkout / "src"), "PATH": "", **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.guard
def test_a_strict_program_is_clean_and_a_wrong_one_is_not(checkout, tmp_path):
    done = check(PROGRAM, checkout, tmp_path)
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr
    wrong = PROGRAM.replace('Rewind("500it")', "Rewind([])")
    assert 'Argument 1 to "Rewind"' in check(wrong, checkout, tmp_path).stdout
