# SPDX-License-Identifier: MIT
"""A fit that stops before its target warns at its start and at its end, with the sparsity."""

import importlib
import time
import warnings
from datetime import timedelta

import pytest
import torch
from installed_versions import two_packages
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tiny_fits import WEIGHTS, Net, fit, loader, zeros

from regrow import DynamicSparseTraining, MagnitudePruning, SparseEarlyStopping, Table

LEVELS = Table({"1ep": 0.25, "6ep": 0.75})


class Worse(Net):
    """Its validation loss rises each epoch, so early stopping ends the fit."""

    def validation_step(self, batch, batch_idx):
        self.log("loss", torch.tensor(1.0 + self.trainer.current_epoch))


def caught(*callbacks, module=None, **kw):
    """The module, and the warnings that name a pruning event."""
    module = module or Worse()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(module, *callbacks, val=loader(1), **{"max_epochs": 10, **kw})
    texts = [str(warning.message) for warning in seen]
    return module, [text for text in texts if "pruning event" in text]


def early(**kw):
    return EarlyStopping("loss", patience=1, **kw)


def test_early_stopping_warns_at_both_ends():
    module, (start, end) = caught(MagnitudePruning(0.75, schedule=LEVELS), early())
    assert zeros(module) == WEIGHTS // 4
    assert "EarlyStopping may end the fit before the last pruning event, at step 48" in start
    assert "write SparseEarlyStopping" in start
    assert "EarlyStopping ended the fit at sparsity 0.25 instead of 0.75" in end
    assert "1 planned pruning event " in end
    assert "write SparseEarlyStopping" in end


def test_a_subclass_of_early_stopping_warns():
    class Mine(EarlyStopping):
        pass

    _, texts = caught(MagnitudePruning(0.75, schedule=LEVELS), Mine("loss", patience=1))
    assert [text.partition(" ")[0] for text in texts] == ["Mine", "Mine"]


class Slow(Worse):
    def training_step(self, batch, batch_idx):
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("own", [True, False])
def test_max_time_warns_at_both_ends(own):
    short = timedelta(seconds=0.05)
    timers, limit = ((Timer(short),), {}) if own else ((), {"max_time": short})
    module, (start, end) = caught(
        MagnitudePruning(0.75, schedule=LEVELS), *timers, module=Slow(), **limit
    )
    assert zeros(module) == 0
    assert "max_time may end the fit" in start
    assert "min_steps=49" in start
    assert "max_time ended the fit at sparsity 0 instead of 0.75" in end


def test_should_stop_warns_at_the_end():
    class Stops(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    _, (end,) = caught(MagnitudePruning(0.75, schedule=LEVELS), Stops())
    assert "trainer.should_stop ended the fit at sparsity 0.25 instead of 0.75" in end


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SIGTERMException])
def test_an_interrupted_fit_warns(signal):
    class Interrupts(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 12:
                raise signal

    match = rf"{signal.__name__} ended the fit at sparsity 0\.25 instead of 0\.75"
    with pytest.warns(UserWarning, match=match), pytest.raises(SystemExit):
        fit(Net(), MagnitudePruning(0.75, schedule=LEVELS), Interrupts(), max_epochs=10)


def test_a_fit_that_fails_does_not_warn():
    class Fails(Callback):
        def on_train_batch_start(self, trainer, *_):
            raise RuntimeError("mine")

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError, match="mine"):
            fit(Net(), MagnitudePruning(0.75, schedule=LEVELS), Fails(), max_epochs=10)
    assert not [warning for warning in seen if "instead of" in str(warning.message)]


@pytest.mark.parametrize("least", [{"min_steps": 49}, {"min_epochs": 7}])
def test_a_fit_that_may_not_stop_before_the_target_does_not_warn(least):
    module, texts = caught(MagnitudePruning(0.75, schedule=LEVELS), early(), **least)
    assert zeros(module) == 3 * WEIGHTS // 4
    assert texts == []


@pytest.mark.parametrize(
    "callbacks",
    [
        lambda: (MagnitudePruning(0.75, schedule=LEVELS), SparseEarlyStopping("loss", patience=1)),
        lambda: (MagnitudePruning(0.75, schedule="one_shot", begin=0), early()),
        lambda: (DynamicSparseTraining(0.75, every="8it"), early()),
    ],
)
def test_a_fit_that_stops_at_its_target_does_not_warn_at_the_end(callbacks):
    module, texts = caught(*callbacks())
    assert not [text for text in texts if "instead of" in text]
    assert zeros(module) >= 3 * WEIGHTS // 4 - 1


@two_packages
def test_early_stopping_of_the_other_package_warns():
    others = importlib.import_module("pytorch_lightning.callbacks")
    stop = others.EarlyStopping("loss", patience=1)
    _, texts = caught(MagnitudePruning(0.75, schedule=LEVELS), stop)
    assert [text.partition(" ")[0] for text in texts] == ["EarlyStopping", "EarlyStopping"]
