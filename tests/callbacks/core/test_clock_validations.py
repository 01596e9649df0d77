# SPDX-License-Identifier: MIT
"""The validations that a Clock expects are those that the Trainer runs."""

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from tiny_fits import Net, loader, trainer

from regrow.callbacks.core.clock import Clock
from regrow.schedules.time import parse_time


class Compares(Callback):
    """Stores the validations expected as epoch `at` begins, and those that come from there on."""

    def __init__(self, at=0, recover="1ep"):
        self.at, self.recover = at, recover
        self.expected, self.ran = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.at and batch_idx == 0:
            clock = Clock(trainer, [parse_time("recover", self.recover)])
            self.expected = clock.validations({self.at: clock.current_step()})
            self.ran = []

    def on_validation_end(self, trainer, pl_module):
        loop, every = trainer.fit_loop.epoch_loop, trainer.accumulate_grad_batches
        # windows begin with each epoch, and its last one may be shorter
        window = 0 if loop.batch_progress.is_last_batch else (loop.batch_idx + 1) % every / every
        self.ran.append(trainer.global_step + window)


def check(batches=10, at=0, more=(), epochs=4, net=Net, recover="1ep", **kw):
    compares = Compares(at, recover)
    made = trainer(compares, *more, max_epochs=epochs, **kw)
    made.fit(net(), loader(batches), loader(1))
    assert compares.expected == pytest.approx(compares.ran)
    assert compares.ran
    return compares.ran


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("accumulated", [1, 3, 4])
@pytest.mark.parametrize(
    "kw",
    [
        {},
        {"val_check_interval": 4},
        {"val_check_interval": 0.25},
        {"val_check_interval": 0.3, "check_val_every_n_epoch": 2},
        {"check_val_every_n_epoch": 2},
        {"check_val_every_n_epoch": None, "val_check_interval": 15},
        {"check_val_every_n_epoch": None, "val_check_interval": 4},
        {"limit_train_batches": 7, "val_check_interval": 3},
        {"limit_train_batches": 0.5, "val_check_interval": 0.5},
        {"max_steps": 14, "val_check_interval": 2},
    ],
    ids=str,
)
def test_expected_validations_are_those_of_the_trainer(kw, accumulated, at):
    check(at=at, accumulate_grad_batches=accumulated, **kw)


def test_accumulated_batches_count_as_parts_of_a_step():
    """By hand: of 10 batches, batches 4 and 8 end 1 + 1/3 and 2 + 2/3 of 4 steps."""
    ran = check(accumulate_grad_batches=3, val_check_interval=4, epochs=2)
    assert ran == pytest.approx([4 / 3, 8 / 3, 4 + 4 / 3, 4 + 8 / 3])


@pytest.mark.parametrize("at", [0, 1, 2])
def test_expected_validations_follow_a_scheduled_accumulation(at):
    check(at=at, more=[GradientAccumulationScheduler({1: 2, 3: 4})], val_check_interval=3)


@pytest.mark.parametrize("batches", [93, 99, 105, 117, 123])
def test_no_validation_is_lost_by_rounding(batches):
    """1 / (31 / 93) is a bit less than 3 in floating point."""
    assert len(check(batches, epochs=1, val_check_interval=batches // 3)) == 3


class Manual(Net):
    """Two steps in each batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


def test_manual_optimization_counts_batches_or_knows_nothing():
    compares = Compares()
    trainer(compares, max_epochs=2, val_check_interval=4).fit(Manual(), loader(10), loader(1))
    assert compares.expected == [4, 8, 14, 18]
    compares = Compares(recover="3it")
    trainer(compares, max_epochs=2).fit(Manual(), loader(10), loader(1))
    assert compares.expected == []
