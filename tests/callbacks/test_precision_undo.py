# SPDX-License-Identifier: MIT
"""Overflow with soft pruning, budgets, rewinding and resumes: restored states are exact."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from overflowing_fits import Overflowing, Steps, overflowing, scaled
from tiny_fits import ADAM, SGD, WEIGHTS, copied, equal, fit, loader, read, zeros
from torch import optim

from regrow import AccuracyBudget, DynamicSparseTraining, MagnitudePruning, Rewind, Table

EVENTS = Table({"3it": 0.5, "9it": 0.8})


class Forwards(Callback):
    """How many weights are zero whenever the network computes."""

    def __init__(self):
        self.seen = {}

    def on_train_start(self, trainer, pl_module):
        def look(*_):
            self.seen.setdefault(trainer.global_step, set()).add(zeros(pl_module))

        pl_module.body.register_forward_pre_hook(look)


class Turns(Overflowing):
    """Manual optimisation: two optimizers, each with its own forward pass within a batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [optim.Adam(self.body[0].parameters(), 0.01), SGD(self.body[2].parameters())]


@pytest.mark.parametrize("make", [Overflowing, Turns])
def test_dense_values_of_soft_are_never_used_in_a_forward_pass(make):
    """No hook follows a skipped step, and another pass may come before the batch ends."""
    module, forwards = make(), Forwards()
    module.at = (4, 5, 6, 11)
    pruning = MagnitudePruning(0.8, schedule=Table({"2it": 0.5, "8it": 0.8}), soft=True)
    fit(module, forwards, pruning, **scaled())
    for step, found in forwards.seen.items():
        expected = 0 if step < 2 else round((0.5 if step < 8 else 0.8) * WEIGHTS)
        assert found == {expected}, step
    dense = pruning.pruner.enforcer.dense_values()
    assert all(values.isfinite().all() for values in dense.values())


def test_dense_values_of_soft_survive_a_skipped_step():
    module, held = overflowing(5, 6), {}
    pruning = MagnitudePruning(0.5, schedule=Table({"3it": 0.5}), soft=True)

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            held[trainer.global_step] = pruning.pruner.enforcer.dense_values()

    fit(module, Look(), pruning, max_epochs=1, **scaled())
    assert equal(held[5], held[6])
    assert equal(held[6], held[7])
    assert not equal(held[4], held[5]), "they learn where a step is made"


@pytest.mark.parametrize("at", [(8,), (8, 9, 10), (12,)])
def test_a_budget_rolls_back_bit_exactly(at):
    module, steps = overflowing(*at, make=ADAM), Steps()
    moments = {}

    class Moments(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            state = trainer.optimizers[0].state_dict()["state"]
            held = {
                i: {k: torch.as_tensor(v).clone() for k, v in s.items()} for i, s in state.items()
            }
            moments[trainer.global_step] = held

    pruning = MagnitudePruning(0.9, schedule=Table({"8it": 0.9}))
    budget = AccuracyBudget("val/loss", 1e-9, mode="min", reference=-1.0)
    fit(module, steps, Moments(), budget, pruning, val=loader(2), max_epochs=3, **scaled())
    assert pruning.history[0]["kind"] == "rollback"
    assert not equal(steps.weights[8], steps.weights[15])
    assert equal(steps.weights[8], steps.weights[16])
    assert equal(moments[8], moments[16])


@pytest.mark.parametrize("at", [(2,), (3,), (8,), (2, 3, 4, 9)])
def test_rewinding_restores_the_same_step(at):
    """Remembered at step 3, gone back to by the event at 8, whatever overflowed."""
    module, steps = overflowing(*at, make=ADAM), Steps()
    pruning = MagnitudePruning(0.5, schedule=Table({"8it": 0.5}))
    fit(module, pruning, Rewind("3it"), steps, **scaled())
    for name, mask in pruning.masks.items():
        now, then = steps.weights[8][name], steps.weights[3][name]
        assert torch.equal(now, then.where(mask, 0))
    assert zeros(module) == WEIGHTS // 2


PRUNERS = {
    "gradual": lambda: MagnitudePruning(0.8, schedule=EVENTS),
    "taylor": lambda: MagnitudePruning(0.8, schedule=EVENTS, criterion="taylor"),
    "movement": lambda: MagnitudePruning(0.8, schedule=EVENTS, criterion="movement"),
    "soft": lambda: MagnitudePruning(0.8, schedule=EVENTS, soft=True),
    "rigl": lambda: DynamicSparseTraining(0.8, every="3it", end=1.0),
    "snfs": lambda: DynamicSparseTraining(0.8, every="3it", end=1.0, grow="momentum"),
}


@pytest.mark.parametrize("kind", PRUNERS)
def test_a_resumed_run_is_the_uninterrupted_one(kind, tmp_path):
    """Interrupted at an epoch's end whose last step overflowed; the scale continues."""
    at = (3, 7, 9, 12)
    whole, pruning = overflowing(*at, make=ADAM), PRUNERS[kind]()
    saved = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    made = fit(whole, pruning, saved, enable_checkpointing=True, **scaled(growth=3))
    again, other = overflowing(*at, make=ADAM), PRUNERS[kind]()
    resumed = fit(again, other, ckpt_path=tmp_path / "step=8.ckpt", **scaled(growth=3))
    assert equal(copied(again), copied(whole))
    assert equal(dict(other.masks), dict(pruning.masks))
    assert other.history == pruning.history
    ends = []
    for trainer in (made, resumed):
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        ends.append(read(tmp_path / "end.ckpt"))
    for key in ("state_dict", "optimizer_states", "global_step", "MixedPrecision"):
        assert equal(ends[0][key], ends[1][key]), key
    assert ends[0]["MixedPrecision"]["scale"] != 128.0
