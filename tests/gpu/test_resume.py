# SPDX-License-Identifier: MIT
"""A resumed run equals the uninterrupted run exactly, with dropout drawn on the device."""

from functools import partial
from pathlib import Path

import pytest
import torch
from device_fits import on
from interrupted_fits import Cut, Save, run
from tiny_fits import ADAM, SGD, equal
from torch import optim

from regrow import DynamicSparseTraining, MagnitudePruning, Table

CASES = {
    "sgd": (SGD, lambda: MagnitudePruning(0.8, schedule=Table({"3it": 0.5, "13it": 0.8}))),
    "adam fused": (
        partial(optim.Adam, lr=0.01, fused=True),
        lambda: MagnitudePruning(
            0.8, schedule=Table({"3it": 0.5, "13it": 0.8}), keep_removed="moments"
        ),
    ),
    "movement": (
        ADAM,
        lambda: MagnitudePruning(
            0.8, schedule=Table({"6it": 0.5, "13it": 0.8}), criterion="movement"
        ),
    ),
    "soft": (
        ADAM,
        lambda: MagnitudePruning(0.8, schedule=Table({"3it": 0.5, "13it": 0.8}), soft=True),
    ),
    "set": (
        ADAM,
        lambda: DynamicSparseTraining(0.8, grow="random", every="3it", end=1.0, init="he"),
    ),
}


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("step", [5, 8])
def test_a_resumed_run_is_the_uninterrupted_run(device, case, step):
    make, pruning = CASES[case]
    whole = run("whole.ckpt", pruning(), make=make, **on(device))
    path = Path("cut.ckpt")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run("never.ckpt", pruning(), Save(path, step), Cut(path), make=make, **on(device))
    resumed = run("resumed.ckpt", pruning(), make=make, ckpt_path=path, **on(device))
    assert equal(resumed, whole)
