# SPDX-License-Identifier: MIT
"""A fit with epochs of changing length, cut and resumed, is the uninterrupted one, bit for bit."""

import random

import pytest
import torch
from accuracy_budget_fits import Judge
from changing_epochs import LENGTHS, STARTS, Changing, Epochs, fit_changing
from interrupted_fits import Cut, Noisy, Save, end_of
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from tiny_fits import ADAM, Net, equal, fit, loader, read, samples

from regrow import (
    AccuracyBudget,
    ConfigError,
    Cubic,
    Cyclic,
    DynamicSparseTraining,
    LearnedMasks,
    MagnitudePruning,
    OneShot,
    RandomState,
    Regrow,
    Rewind,
    Table,
)
from regrow.data.tensor_loader import BatchLoader


def shuffled(batches):
    return BatchLoader(*samples(4 * batches).tensors, batch_size=4, shuffle=True)


LEVELS = Table({"1ep": 0.25, 0.5: 0.5, "4ep": 0.75})
CASES = {
    "epochs and a fraction": lambda: [MagnitudePruning(0.75, schedule=LEVELS)],
    "the default schedule": lambda: [MagnitudePruning(0.75)],
    "phases": lambda: [MagnitudePruning(0.75, schedule=Cyclic(0.1, 0.8, 0.2))],
    "keep": lambda: [MagnitudePruning(0.75, schedule=OneShot("3ep"), on_change="keep")],
    "gradients": lambda: [MagnitudePruning(0.75, schedule=LEVELS, criterion="taylor")],
    "rigl": lambda: [DynamicSparseTraining(0.8, every="1ep", end=0.75)],
    "set": lambda: [DynamicSparseTraining(0.8, grow="random", every="2it", end=0.75)],
    "learned": lambda: [LearnedMasks("l0", 0.5, begin="1ep", end=0.75)],
    "rewinding": lambda: [
        MagnitudePruning(
            0.75, schedule=Table({"3ep": 0.5, "5ep": 0.75}), rewind=Rewind("2ep", what=("weights",))
        )
    ],
    "regrowth": lambda: [
        MagnitudePruning(0.75, schedule=OneShot("1ep")),
        Regrow([0.25, "4ep"], fraction=0.25),
    ],
}
CUTS = [8, 15, 24, 27]


class SaveAtEpochEnd(Save):
    """Saves after an epoch, before the next one."""

    def on_train_batch_end(self, *_):
        pass

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def run(path, *callbacks, **kw):
    """Trains to the end, and returns what a checkpoint then holds of it."""
    torch.manual_seed(0)
    random.seed(0)
    data = Changing(LENGTHS, shuffled)
    made = fit_changing(Noisy(ADAM), RandomState(), *callbacks, data=data, **kw)
    made.save_checkpoint(path)
    return end_of(path)


def check_resumes(tmp_path, make, saves):
    whole = run(tmp_path / "whole.ckpt", *make())
    for number, save in enumerate(saves):
        cut = tmp_path / f"cut{number}.ckpt"
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(tmp_path / "none.ckpt", *make(), save(cut), Cut(cut))
        again = run(tmp_path / "again.ckpt", *make(), ckpt_path=cut)
        for one, other in zip(whole, again, strict=True):
            assert equal(one, other), f"cut {number}"


@pytest.mark.parametrize("name", CASES)
def test_resumed_run_is_the_uninterrupted_run(name, tmp_path):
    saves = [lambda path, step=step: Save(path, step) for step in CUTS]
    check_resumes(tmp_path, CASES[name], saves)


@pytest.mark.parametrize("name", ["epochs and a fraction", "the default schedule", "regrowth"])
def test_resumed_run_from_the_end_of_an_epoch(name, tmp_path):
    saves = [lambda path, step=step: SaveAtEpochEnd(path, step) for step in STARTS[1:5]]
    check_resumes(tmp_path, CASES[name], saves)


@pytest.mark.parametrize("step", [12, 22, 27])
def test_resumed_run_under_a_budget(step, tmp_path):
    def run(path, save=None, ckpt_path=None):
        torch.manual_seed(0)
        pruning = MagnitudePruning(0.5, schedule=Cubic(0.2, 0.75, 0.05))
        budget = AccuracyBudget("acc", max_drop=0.1)
        more = () if save is None else (save, Cut(save.path))
        data = Changing(LENGTHS, shuffled)
        made = fit_changing(
            Judge(pruning, 0.4), RandomState(), pruning, budget, *more, data=data,
            ckpt_path=ckpt_path,
        )  # fmt: skip
        made.save_checkpoint(path)
        return end_of(path)

    whole, cut = run(tmp_path / "whole.ckpt"), tmp_path / "cut.ckpt"
    save = Save(cut, step)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path / "none.ckpt", save)
    assert equal(whole, run(tmp_path / "again.ckpt", ckpt_path=cut))


def test_resumed_run_with_an_accumulation_scheduler(tmp_path):
    def make():
        scheduler = GradientAccumulationScheduler({0: 2, 1: 3, 3: 1})
        return [MagnitudePruning(0.75, schedule=Cubic("1ep", 0.75, "1ep")), scheduler]

    saves = [lambda path, step=step: SaveAtEpochEnd(path, step) for step in (4, 5, 9)]
    check_resumes(tmp_path, make, saves)


def test_an_epoch_that_is_longer_after_a_resume_does_not_bring_later_events(tmp_path):
    """Lightning trains the rest of a cut epoch without its scheduler's accumulation."""

    class SaveInMiddle(Save):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (1, 3):
                trainer.save_checkpoint(self.path)

    def fit(*callbacks, **kw):
        pruning = MagnitudePruning(0.5, schedule=OneShot("3ep"))
        scheduler = GradientAccumulationScheduler({0: 4})
        data = Changing((8,) * 6, shuffled)
        fit_changing(Net(), *callbacks, scheduler, pruning, data=data, **kw)

    cut, epochs = tmp_path / "cut.ckpt", Epochs()
    save = SaveInMiddle(cut, 0)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(save, Cut(cut))
    fit(epochs, ckpt_path=cut)
    assert epochs.at == [(3, 0)]
    assert epochs.starts == [7, 9, 11, 13]  # epoch 1 had five steps instead of two


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_start"])
@pytest.mark.parametrize("first", [True, False])
def test_an_epoch_is_counted_once_where_its_start_was_saved(hook, first, tmp_path):
    cut = tmp_path / "cut.ckpt"

    class Saves(Callback):
        pass

    def save(self, trainer, *_):
        if trainer.current_epoch == 2 and not cut.exists():
            trainer.save_checkpoint(cut)

    setattr(Saves, hook, save)
    pruning = MagnitudePruning(0.5, schedule=OneShot("4ep"))
    fit_changing(Net(), *((Saves(), pruning) if first else (pruning, Saves())))
    epochs = Epochs()
    pruning = MagnitudePruning(0.5, schedule=OneShot("4ep"), on_change="stretch")
    fit_changing(Net(), epochs, pruning, ckpt_path=cut)
    assert epochs.at == [(4, 0)]


def test_the_state_holds_the_first_step_of_each_epoch(tmp_path):
    pruning = MagnitudePruning(0.5, schedule=OneShot("2ep"))
    fit_changing(Net(), pruning).save_checkpoint(tmp_path / "end.ckpt")
    [state] = [s for s in read(tmp_path / "end.ckpt")["callbacks"].values() if "progress" in s]
    assert state["progress"]["epochs"] == dict(enumerate(STARTS[:-1]))


def test_a_loader_of_another_length_on_resume_raises(tmp_path):
    cut = tmp_path / "cut.ckpt"
    pruning = MagnitudePruning(0.5, schedule=OneShot("4ep"))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit_changing(Net(), pruning, Save(cut, 13), Cut(cut))
    other = Changing((8, 3, 6, 5, 2, 6))
    again = MagnitudePruning(0.5, schedule=OneShot("4ep"))
    with pytest.raises(ConfigError, match="write on_change='keep'"):
        fit_changing(Net(), again, data=other, ckpt_path=cut)
    epochs, again = Epochs(), MagnitudePruning(0.5, schedule=OneShot("4ep"), on_change="stretch")
    fit_changing(Net(), epochs, again, data=other, ckpt_path=cut)
    assert epochs.at == [(4, 0)]


def test_on_change_keep_keeps_the_steps_of_the_checkpoint(tmp_path):
    cut = tmp_path / "cut.ckpt"
    pruning = MagnitudePruning(0.5, schedule=OneShot("2ep"))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Net(), pruning, Save(cut, 5), Cut(cut), max_epochs=4)
    epochs, again = Epochs(), MagnitudePruning(0.5, schedule=OneShot("2ep"), on_change="keep")
    fit(Net(), epochs, again, data=loader(7), ckpt_path=cut, max_epochs=4)
    assert epochs.steps == [16]
