# SPDX-License-Identifier: MIT
"""Each method trains on the device, keeps its zeros and reaches its target."""

import pytest
import torch
from device_fits import Callable, Placed, on
from tiny_fits import ADAM, WEIGHTS, Net, fit, loader, zeros

from regrow import (
    AccuracyBudget,
    Distill,
    DynamicSparseTraining,
    LearnedMasks,
    MagnitudePruning,
    PostTrainingPruning,
    PruneAtInit,
    Regrow,
    SparsityMonitor,
    Table,
)

LEVELS = Table({"3it": 0.5, "9it": 0.8})


def magnitude(**kw):
    return MagnitudePruning(0.8, schedule=LEVELS, **kw)


def teacher():
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(6, 3))


METHODS = {
    "gradual": lambda: [magnitude()],
    "moments": lambda: [magnitude(keep_removed="moments")],
    "soft": lambda: [magnitude(soft=True)],
    "taylor": lambda: [magnitude(criterion="taylor")],
    "movement": lambda: [magnitude(criterion="movement")],
    "block fisher": lambda: [magnitude(criterion="block_fisher")],
    "rewind": lambda: [magnitude(rewind="2it")],
    "refit": lambda: [magnitude(refit=True)],
    "rigl": lambda: [DynamicSparseTraining(0.8, every="4it", distribution="uniform")],
    "set": lambda: [DynamicSparseTraining(0.8, grow="random", every="4it", init="he",
                                          distribution="uniform")],
    "snfs": lambda: [DynamicSparseTraining(0.8, grow="momentum", every="4it",
                                           distribution="uniform")],
    "regrow": lambda: [magnitude(), Regrow("12it", 0.25, by="gradient", init="he"),
                       Regrow("13it", 0.25, init="survivors", train="regrown")],
    "budget": lambda: [AccuracyBudget("val/loss", 9.0, mode="min", reference=1.0), magnitude()],
    "learned": lambda: [LearnedMasks("str", 0.8)],
    "l0": lambda: [LearnedMasks("l0", 0.8, begin="1ep", end=0.75)],
    "snip": lambda: [PruneAtInit(0.8)],
    "grasp": lambda: [PruneAtInit(0.8, method="grasp")],
    "synflow": lambda: [PruneAtInit(0.8, method="synflow")],
    "obs": lambda: [PostTrainingPruning(0.8, criterion="obs")],
    "sparsegpt": lambda: [PostTrainingPruning(0.8, criterion="sparsegpt")],
    "wanda": lambda: [PostTrainingPruning(0.8, criterion="wanda")],
    "distilled": lambda: [Distill(teacher(), weight=0.5, network="body"), magnitude()],
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_method_reaches_its_target_on_the_device(device, method):
    callbacks, placed, module = METHODS[method](), Placed(), Callable(ADAM)
    monitor = SparsityMonitor()
    fit(module, *callbacks, monitor, placed, val=loader(2), max_epochs=4, **on(device))
    assert placed.kinds == {device.type}
    [pruning] = [callback for callback in callbacks if hasattr(callback, "masks")]
    wanted = round(0.8 * 96) + round(0.8 * 48) if pruning.sparsity != 0.8 else round(0.8 * WEIGHTS)
    if method == "regrow":
        wanted = pruning.pruner.pruned
        assert 0 < wanted < round(0.8 * WEIGHTS)
    assert pruning.pruner.pruned == wanted
    assert zeros(module) >= wanted
    for name, mask in pruning.masks.items():
        assert not module.get_parameter(name).detach().cpu()[~mask.cpu()].any(), name
    if pruning.keep_removed:
        pruning.unprune()
        assert pruning.sparsity == 0


def test_a_fit_on_the_cpu_goes_on_on_the_device_and_back(device):
    module, pruning = Net(ADAM), magnitude()
    fit(module, pruning)
    for kw in (on(device), {}):
        before = {name: mask.cpu() for name, mask in pruning.masks.items()}
        fit(module, pruning, max_epochs=1, **kw)
        assert zeros(module) == round(0.8 * WEIGHTS)
        assert all(torch.equal(mask.cpu(), before[name]) for name, mask in pruning.masks.items())
    fit(module, pruning, max_epochs=1, **on(device))
    pruning.prune_to(0.9)  # on the CPU, where Lightning leaves the module
    assert zeros(module) == round(0.9 * WEIGHTS)
    pruning.unprune()
    assert zeros(module) == 0
