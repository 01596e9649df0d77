# SPDX-License-Identifier: MIT
"""NaN becomes zero at pruned places, raises an error as a score, and keeps the last checkpoint."""

import math

import pytest
import torch
from fault_scenarios import SCENARIOS
from interrupted_fits import Noisy, data, end_of, run
from lightning.pytorch import Callback
from tiny_fits import ADAM, equal, fit, loader, read, weights

from regrow import (
    AccuracyBudget,
    DynamicSparseTraining,
    MagnitudePruning,
    RandomState,
    SparseModelCheckpoint,
    StateError,
    Table,
)

TWICE = Table({"3it": 0.5, "9it": 0.8})


class Poison(Callback):
    """Replace gradients of zero weights by NaN or Inf before pruning callbacks read them."""

    def __init__(self, value):
        self.value = value

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for weight in weights(pl_module).values():
            parameter = next(p for p in pl_module.parameters() if p.data_ptr() == weight.data_ptr())
            parameter.grad[weight == 0] = self.value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_at_pruned_places_becomes_zero(value, tmp_path):
    whole = run(tmp_path / "whole.ckpt", MagnitudePruning(0.8, schedule=TWICE))
    again = run(
        tmp_path / "again.ckpt", Poison(value), MagnitudePruning(0.8, schedule=TWICE),
        gradient_clip_val=1e9,
    )  # fmt: skip
    assert equal(whole, again)
    assert all(value.isfinite().all() for value in again[0].values())


class Breaks(Callback):
    """Replace a kept weight of the second layer by NaN."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 9:  # the next thing that happens is an event
            weight = pl_module.body[2].weight.data.view(-1)
            weight[weight.abs().argmax()] = math.nan


METHODS = {
    "magnitude": lambda: MagnitudePruning(0.8, schedule=TWICE),
    "erk": lambda: MagnitudePruning(0.8, schedule=TWICE, distribution="erk"),
    "lamp": lambda: MagnitudePruning(0.8, schedule=TWICE, distribution="lamp"),
    "taylor": lambda: MagnitudePruning(0.8, schedule=TWICE, criterion="taylor"),
    "soft": lambda: MagnitudePruning(0.8, schedule=TWICE, soft=True),
    "rigl": lambda: DynamicSparseTraining(0.8, every="3it"),
}


@pytest.mark.parametrize("name", METHODS)
def test_nan_score_raises_with_the_name_and_changes_nothing(name):
    pruning = METHODS[name]()
    module = Noisy(ADAM)
    layer = "body.0.weight" if name in ("taylor", "rigl") else "body.2.weight"  # by gradients: all
    with pytest.raises(StateError, match=rf"^{layer} has \d+ NaN scores"):
        fit(module, Breaks(), pruning, data=data())
    assert pruning.pruner.enforcer.transaction.failed is None
    assert all(entry["step"] < 9 for entry in pruning.history)
    assert pruning.masks.pruned == pruning.history[-1]["pruned"]
    pruning.state_dict()


class Diverges(Noisy):
    """A module whose loss is NaN for one batch of its first fit."""

    bad = 13

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if self.trainer.global_step == self.bad else loss


def noisy(folder, module, **kw):
    """`cut.run` with a module of one's own and a checkpoint at every step."""
    torch.manual_seed(0)
    saving = SparseModelCheckpoint(folder, monitor="train/loss", every_n_train_steps=1)
    callbacks, _ = SCENARIOS["gradual"]()
    made = fit(module, RandomState(), *callbacks, saving, data=data(), enable_checkpointing=True,
               **kw)  # fmt: skip
    made.save_checkpoint(folder / "end.ckpt")
    end = end_of(folder / "end.ckpt")
    return [part for i, part in enumerate(end) if i != 2]


def test_nan_loss_leaves_a_checkpoint_to_resume_from(tmp_path):
    """With detect_anomaly the step is stopped; without faults that changes nothing."""
    whole = noisy(tmp_path / "whole", Noisy(ADAM), detect_anomaly=True)
    assert equal(whole, noisy(tmp_path / "plain", Noisy(ADAM)))
    with pytest.raises(RuntimeError, match="returned nan values"):
        noisy(tmp_path / "run", Diverges(ADAM), detect_anomaly=True)
    last = tmp_path / "run" / "last.ckpt"
    assert read(last)["global_step"] == Diverges.bad
    assert equal(whole, noisy(tmp_path / "run", Noisy(ADAM), ckpt_path=last))


class Judged(Noisy):
    """A module that logs given validation metrics."""

    values = ()

    def on_validation_epoch_end(self):
        values = self.values
        self.log("val/score", values[min(self.current_epoch, len(values) - 1)])


def judged(*values):
    module = Judged(ADAM)
    module.values = values
    pruning = MagnitudePruning(0.9, schedule=Table({"9it": 0.5, "25it": 0.9}))
    budget = AccuracyBudget("val/score", 0.1, recover="2it", resolution=0.2)
    fit(module, pruning, budget, data=data(), val=loader(1), max_epochs=6)
    return pruning


def test_budget_without_a_dense_metric_prunes_nothing():
    with pytest.raises(StateError, match="logged a number"):
        judged(math.nan)


def test_nan_metric_is_not_taken_as_the_reference():
    pruning = judged(1.0, 0.95, 0.95, 0.95, 0.95, 0.95)
    assert [entry["kind"] for entry in pruning.history][:2] == ["prune", "prune"]


def test_nan_metric_after_an_event_rolls_it_back():
    pruning = judged(1.0, math.nan, math.nan, math.nan, math.nan, math.nan)
    kinds = [entry["kind"] for entry in pruning.history]
    assert kinds[0] == "rollback"
    assert "prune" not in kinds  # rolled back events are removed from the history
    assert pruning.sparsity == 0
