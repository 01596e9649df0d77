# SPDX-License-Identifier: MIT
"""Every profiler works with a pruner, lists its hooks, and does not change results."""

import pytest
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from tiny_fits import ADAM, Net, copied, equal, fit, loader

from regrow import DynamicSparseTraining, MagnitudePruning, Table

LEVELS = Table({"3it": 0.5, "11it": 0.8})
PROFILERS = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def run(make, **kw):
    module, pruning = Net(ADAM), make()
    fit(module, pruning, val=loader(), gradient_clip_val=0.1, **kw)
    return copied(module), dict(pruning.masks), pruning.history


def gradual():
    return MagnitudePruning(0.8, schedule=LEVELS, criterion="taylor")


def sparse():
    return DynamicSparseTraining(0.8, every="3it")


@pytest.mark.parametrize("make", [gradual, pytest.param(sparse, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PROFILERS)
def test_a_profiler_does_not_change_the_result(name, make, tmp_path):
    profiler = PROFILERS[name](dirpath=tmp_path, filename="profile")
    assert equal(run(make, profiler=profiler), run(make))
    written = "".join(path.read_text() for path in tmp_path.glob("fit-profile*.txt"))
    assert "on_train_batch_start" in written or name == "pytorch"
    assert written


@pytest.mark.slow
@pytest.mark.parametrize("name", PROFILERS)
def test_profilers_selected_by_name_do_not_change_the_result(name):
    assert equal(run(gradual, profiler=name), run(gradual))
