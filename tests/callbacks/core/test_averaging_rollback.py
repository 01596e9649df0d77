# SPDX-License-Identifier: MIT
"""Averages are restored with the weights: after a rollback, with rewinding, between fits."""

import pytest
import torch
from averaging_reference import Mirror, arrays, copy_of, exponential, placed, same, zeros_of
from lightning.pytorch import Callback
from rewinding_fits import KEPT, ROUNDS, Normed
from tiny_fits import ADAM, SGD, WEIGHTS, Net, copied, equal, fit, loader, read

from regrow import AccuracyBudget, MagnitudePruning, Rewind, SparseModelCheckpoint, Table

ORDERS = pytest.mark.parametrize("order", ["before", "between", "behind"])


class Judge(Net):
    """Logs an accuracy that is a function of the zeros that validation finds."""

    def __init__(self, limit):
        super().__init__(SGD)
        self.limit, self.shares = limit, []

    def validation_step(self, batch, batch_idx):
        self.shares.append(zeros_of(self) / WEIGHTS)
        self.log("acc", 1.0 if self.shares[-1] <= self.limit else 0.5)


class GoesBack(Mirror):
    """Check that after a rollback the average is that from before the event."""

    def __init__(self, averaging, pruning):
        super().__init__(averaging)
        self.pruning, self.held, self.rollbacks = pruning, None, 0

    def look_back(self, module):
        found = sum(entry["kind"] == "rollback" for entry in self.pruning.history)
        if found > self.rollbacks:
            self.average, self.count = {n: a.copy() for n, a in self.held[0].items()}, self.held[1]
            self.note(module)
            self.compare()
        self.rollbacks = found

    def before_prune_event(self, trainer, pl_module, pruner):
        self.look_back(pl_module)
        self.held = {n: a.copy() for n, a in self.average.items()}, self.count

    def on_train_epoch_start(self, trainer, pl_module):
        self.look_back(pl_module)

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.look_back(pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.look_back(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)


def ordered(order, averaging, pruning, budget):
    if order == "between":
        return pruning, averaging, budget
    return placed(order, averaging, budget, pruning)


class Stops(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop |= trainer.current_epoch == 3


@ORDERS
@pytest.mark.parametrize(("limit", "epochs"), [(0.3, 5), (0.4, 14), (1.0, 8)])
def test_a_rollback_restores_the_average(limit, epochs, order, tmp_path):
    """In mid-fit, and at the end because the event failed or was not measured."""
    averaging, module = exponential(), Judge(limit)
    pruning = MagnitudePruning(schedule=Table({"1ep": 0.25, "26it": 0.75}))
    budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.05, recover="1ep")
    mirror = GoesBack(averaging, pruning)
    saves = SparseModelCheckpoint(tmp_path, monitor="acc", mode="max")
    stops = (Stops(),) if limit == 1 else ()
    fit(
        module, *ordered(order, averaging, pruning, budget), mirror, *stops, saves,
        val=loader(2), max_epochs=epochs, enable_checkpointing=True,
    )  # fmt: skip
    assert "rollback" in [entry["kind"] for entry in pruning.history]
    mirror.look_back(module)
    assert same(arrays(module), mirror.average)
    assert zeros_of(module) == round(pruning.sparsity * WEIGHTS)
    last = read(tmp_path / "last.ckpt")
    assert zeros_of_state(last["current_model_state"]) == zeros_of(module)
    if pruning.history[-1]["kind"] == "rollback":
        assert equal(last["state_dict"], copied(module))
        # the weights to go on from are no average
        assert not equal(dict(last["current_model_state"]), copied(module))


def zeros_of_state(state):
    return sum(int((t.view(torch.int32) == 0).sum()) for n, t in state.items() if t.dim() > 1)


class Restarts(Mirror):
    """Check that after each event the average equals the rewound module, with a count of zero."""

    def __init__(self, averaging, late):
        super().__init__(averaging)
        self.late, self.pending, self.restarts = late, False, 0

    def on_prune_event(self, trainer, pl_module, event):
        if self.late:
            super().on_prune_event(trainer, pl_module, event)
            self.pending = True
        else:
            self.restart(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *given):
        if self.pending:
            self.last, self.pending = trainer.global_step, False
            self.restart(pl_module)
        else:
            super().on_train_batch_end(trainer, pl_module, *given)

    def restart(self, module):
        self.restarts += 1
        self.average, self.count = arrays(module), 0
        self.note(module)
        self.compare()
        assert equal(dict(copy_of(self.averaging).state_dict()), copied(module))


@pytest.mark.parametrize("order", ["before", "behind"])
@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("rewind", [Rewind("3it"), Rewind("0it", ["weights"], reinit=1)])
def test_rewinding_starts_a_new_average(criterion, rewind, order):
    averaging, module = exponential(), Normed(ADAM)
    mirror = Restarts(averaging, late=criterion == "taylor")
    pruning = MagnitudePruning(0.875, schedule=ROUNDS(), rewind=rewind, criterion=criterion)
    fit(module, *placed(order, averaging, pruning), mirror, max_epochs=4, val=loader(2))
    assert mirror.restarts == 3
    assert mirror.count == (7 if mirror.late else 8)
    assert same(arrays(module), mirror.average)
    assert zeros_of(module) >= KEPT[-1]


@pytest.mark.parametrize("what", ["lr", "finetune"])
def test_rewinding_without_weights_continues_the_average(what):
    averaging, module = exponential(), Normed(ADAM)
    mirror = Mirror(averaging)
    pruning = MagnitudePruning(0.875, schedule=ROUNDS(), rewind=Rewind("3it", what))
    fit(module, averaging, pruning, mirror, max_epochs=4, val=loader(2))
    assert mirror.count == 32
    assert same(arrays(module), mirror.average)


def test_second_fit_continues_from_the_average(tmp_path):
    averaging, module = exponential(), Net(ADAM)
    first = MagnitudePruning(0.5, schedule=Table({"3it": 0.5}))
    made = fit(module, averaging, first, max_epochs=1)
    mirror = Mirror(averaging)
    made.callbacks.append(mirror)
    start = arrays(module)
    made.fit_loop.max_epochs = 3
    made.fit(module, loader(), loader(2))
    assert mirror.count == 16
    assert not same(start, arrays(module))
    assert same(arrays(module), mirror.average)
    assert zeros_of(module) == WEIGHTS // 2


def test_weights_restored_after_the_fit_are_saved(tmp_path):
    """Lightning still saves the average, so the average must contain them."""
    pruning, module = MagnitudePruning(0.5, schedule=Table({"3it": 0.5})), Net(ADAM)
    made = fit(module, exponential(), pruning)
    pruning.unprune("body.0.weight")
    pruning.regrow(0.5, names="body.2.weight")
    assert zeros_of(module) < WEIGHTS // 2
    made.save_checkpoint(tmp_path / "end.ckpt")
    assert equal(read(tmp_path / "end.ckpt")["state_dict"], copied(module))


class Raises(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 7:
            raise RuntimeError("now")


def test_interrupted_fit_leaves_model_and_average_masked():
    averaging, module = exponential(), Net(ADAM)
    pruning = MagnitudePruning(0.5, schedule=Table({"3it": 0.5}))
    with pytest.raises(RuntimeError, match="now"):
        fit(module, averaging, pruning, Raises())
    assert zeros_of(module) == zeros_of(copy_of(averaging)) == WEIGHTS // 2
    assert not torch.equal(module.body[0].weight, copy_of(averaging).body[0].weight)
