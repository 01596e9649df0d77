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

from regrow import DynamicSparseTraining, LearnedMasks, MagnitudePruning, Table


def magnitude(**kw):
    return MagnitudePruning(0.8, schedule=Table({"6it": 0.5, "13it": 0.8}), **kw)


def dynamic(**kw):
    return DynamicSparseTraining(0.8, every="3it", end=1.0, **kw)


CASES = {
    "sgd": (SGD, magnitude),
    "adam fused": (
        partial(optim.Adam, lr=0.01, fused=True),
        partial(magnitude, keep_removed="moments"),
    ),
    "movement": (ADAM, partial(magnitude, criterion="movement")),
    "block fisher": (ADAM, partial(magnitude, criterion="block_fisher")),
    "soft": (ADAM, partial(magnitude, soft=True)),
    "rewind": (ADAM, partial(magnitude, rewind="2it")),
    "rigl": (ADAM, dynamic),
    "set": (ADAM, partial(dynamic, grow="random", init="he")),
    "snfs": (ADAM, partial(dynamic, grow="momentum")),
    "str": (ADAM, partial(LearnedMasks, "str", 0.8, end=0.9)),
    "l0": (ADAM, partial(LearnedMasks, "l0", 0.8, end=0.9)),
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
