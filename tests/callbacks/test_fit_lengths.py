# SPDX-License-Identifier: MIT
"""Fits of every length: events happen at their times, and impossible schedules raise."""

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from tiny_fits import Events, Net, fit, stream

from regrow import ConfigError, Linear, MagnitudePruning, OneShot, Table


@pytest.mark.parametrize(("limit", "batches"), [(3, 3), (0.5, 4), (1, 1), (100, 8)])
def test_fractions_follow_limit_train_batches(limit, batches):
    events = Events()
    pruning = MagnitudePruning(0.5, schedule=Table({"1ep": 0.25, 0.75: 0.5}))
    fit(Net(), events, pruning, limit_train_batches=limit, max_epochs=4)
    assert events.seen == [(batches, 0.25), (3 * batches, 0.5)]


def test_fractions_follow_overfit_batches():
    events = Events()
    pruning = MagnitudePruning(0.5, schedule=Table({"1ep": 0.25, 0.75: 0.5}))
    fit(Net(), events, pruning, overfit_batches=2, max_epochs=4)
    assert events.seen == [(2, 0.25), (6, 0.5)]


def test_fractions_are_of_the_fit_cut_by_max_steps():
    events = Events()
    fit(Net(), events, MagnitudePruning(0.5, schedule=OneShot(0.5)), max_epochs=4, max_steps=10)
    assert events.steps == [5]


@pytest.mark.parametrize("most", [{"max_epochs": -1}, {"max_epochs": None}])
def test_fractions_follow_max_steps_alone(most):
    events = Events()
    fit(Net(), events, MagnitudePruning(0.5, schedule=OneShot(0.5)), max_steps=20, **most)
    assert events.steps == [10]


def test_unlimited_epochs_require_absolute_times():
    class Stops(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 12

    module = Net()
    with pytest.raises(ConfigError, match="write '3ep' or '500it', or give the Trainer max_steps"):
        fit(module, MagnitudePruning(0.5, schedule=OneShot(0.5)), max_epochs=-1)
    assert module.trained == 0
    events = Events()
    pruning = MagnitudePruning(0.5, schedule=Table({"1ep": 0.25, "10it": 0.5}))
    fit(module, events, pruning, Stops(), max_epochs=-1)
    assert events.seen == [(8, 0.25), (10, 0.5)]


def test_data_without_a_length_requires_steps_or_max_steps():
    module = Net()
    for time, what in [(0.5, "write '3ep' or '500it'"), ("1ep", "write '500it'")]:
        with pytest.raises(ConfigError, match=what):
            fit(module, MagnitudePruning(0.5, schedule=OneShot(time)), data=stream())
    assert module.trained == 0
    events = Events()
    fit(module, events, MagnitudePruning(0.5, schedule=OneShot("5it")), data=stream())
    assert events.steps == [5]
    events, endless = Events(), stream(endless=True)
    pruning = MagnitudePruning(0.5, schedule=OneShot(0.5))
    fit(Net(), events, pruning, data=endless, max_steps=6, max_epochs=-1)
    assert events.steps == [3]
    events = Events()
    pruning = MagnitudePruning(0.5, schedule=OneShot("1ep"))
    fit(Net(), events, pruning, data=endless, limit_train_batches=3)
    assert events.steps == [3]


def test_accumulation_counts_optimizer_steps():
    events = Events()
    pruning = MagnitudePruning(0.5, schedule=Table({"2it": 0.125, "1ep": 0.25, 0.75: 0.5}))
    fit(Net(), events, pruning, accumulate_grad_batches=3, max_epochs=4)  # 3 steps an epoch
    assert events.seen == [(2, 0.125), (3, 0.25), (9, 0.5)]


class Epochs(Events):
    """Remembers (epoch, batch) of each event."""

    def __init__(self):
        super().__init__()
        self.at, self.batch = [], None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch_idx

    def on_prune_event(self, trainer, pl_module, event):
        self.at.append((event.epoch, self.batch))


def test_epoch_times_hold_if_accumulation_changes():
    epochs = Epochs()
    accumulation = GradientAccumulationScheduler({1: 2, 3: 8})
    pruning = MagnitudePruning(0.5, schedule=Linear("1ep", "5ep", "1ep"))
    fit(Net(), epochs, accumulation, pruning, max_epochs=6)
    assert epochs.at == [(2, 0), (3, 0), (4, 0), (5, 0)]


def test_events_occur_once_at_the_start_of_an_accumulation_window():
    epochs = Epochs()
    pruning = MagnitudePruning(0.5, schedule=OneShot("1it"))
    fit(Net(), epochs, pruning, accumulate_grad_batches=3, max_epochs=1)
    assert epochs.at == [(0, 3)]
