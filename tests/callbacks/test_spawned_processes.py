# SPDX-License-Identifier: MIT
"""Fits in spawned or forked processes return only weights, so that pruning in them raises."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from rewinding_fits import Normed
from tiny_fits import Net, fit, prune_at_start, trainer
from torch.multiprocessing.spawn import ProcessRaisedException

import regrow
from regrow import ConfigError, MagnitudePruning, RandomState, Rewind

LOST = "masks and history of {} would be lost. Write strategy='ddp' in a script, or devices=1"
PRUNING = {
    "MagnitudePruning": lambda: MagnitudePruning(0.5),
    "ChannelPruning": lambda: regrow.ChannelPruning(0.5),
    "DynamicSparseTraining": lambda: regrow.DynamicSparseTraining(0.5),
    "LearnedMasks": lambda: regrow.LearnedMasks("str", 0.5),
    "PostTrainingPruning": lambda: regrow.PostTrainingPruning(0.5),
    "PruneAtInit": lambda: regrow.PruneAtInit(0.5, method="random"),
}
BESIDE = {  # callbacks that need one that prunes
    "AccuracyBudget": lambda: regrow.AccuracyBudget("val/loss", 0.1, mode="min"),
    "AlternatingPhases": lambda: regrow.AlternatingPhases(),
    "Regrow": lambda: regrow.Regrow("5it", 0.5),
    "Rewind": lambda: Rewind("0it"),
    "SparseEarlyStopping": lambda: regrow.SparseEarlyStopping("val/loss"),
    "SparseModelCheckpoint": lambda: regrow.SparseModelCheckpoint(monitor="val/loss"),
    "SparsityMonitor": lambda: regrow.SparsityMonitor(),
}
ALONE = {"Distill", "RandomState", "Slimming"}  # nothing of theirs outlives a fit


def test_every_public_callback_is_here():
    public = (getattr(regrow, name) for name in regrow.__all__)
    callbacks = {c.__name__ for c in public if isinstance(c, type) and issubclass(c, Callback)}
    assert callbacks == {*PRUNING, *BESIDE, *ALONE}


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
@pytest.mark.parametrize("name", [*PRUNING, *BESIDE])
def test_pruning_callbacks_raise_at_the_start_of_a_fit(name, strategy):
    """Without the processes, in each of which Lightning calls `setup` first of all."""
    pruner = PRUNING.get(name, PRUNING["MagnitudePruning"])()
    callbacks = [pruner, BESIDE[name]()] if name in BESIDE else [pruner]
    made = trainer(*callbacks, strategy=strategy, devices=2, enable_checkpointing=True)
    with pytest.raises(ConfigError, match=LOST.format(type(pruner).__name__)):
        set_up(made)


def set_up(made):
    module = Net()
    for callback in made.callbacks:
        callback.setup(made, module, "fit")


def test_evaluation_may_be_in_other_processes():
    made = trainer(pruner := MagnitudePruning(0.5), strategy="ddp_spawn", devices=2)
    for stage in ("validate", "test", "predict"):
        pruner.setup(made, Net(), stage)  # does not raise
    assert pruner.session.current is None
    with pytest.raises(ConfigError, match=LOST.format("MagnitudePruning")):
        pruner.setup(made, Net(), "fit")


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_two_spawned_processes_raise(method):
    strategy = DDPStrategy(process_group_backend="gloo", start_method=method)
    with pytest.raises(ProcessRaisedException, match=LOST.format("MagnitudePruning")):
        fit(Net(), prune_at_start(), strategy=strategy, devices=2)


@pytest.mark.guard
@pytest.mark.slow
def test_callbacks_without_masks_train_in_two_processes():
    module, before = Normed(), Normed()
    strategy = DDPStrategy(process_group_backend="gloo", start_method="spawn")
    callbacks = [RandomState(), regrow.Distill("start", network="body"), regrow.Slimming()]
    fit(module, *callbacks, strategy=strategy, devices=2)
    assert not torch.equal(module.body[0].weight, before.body[0].weight)
