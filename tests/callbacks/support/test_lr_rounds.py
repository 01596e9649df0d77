# SPDX-License-Identifier: MIT
"""Learning-rate schedules must span one round of a fit that rewinds."""

import pytest
from lightning.pytorch import Callback
from rewinding_fits import BACK, ROUNDS, Normed, falling, pruning
from tiny_fits import BATCHES, SGD, Net, fit
from torch import optim

from regrow import ConfigError, Exponential, MagnitudePruning, Rewind
from regrow.callbacks.rewind import lr_schedule_steps


def test_a_schedule_of_the_whole_fit_is_refused():
    with pytest.raises(ConfigError, match=r"LambdaLR continues after one round.*total_steps=8"):
        fit(Normed(steps=4 * BATCHES), pruning(), max_epochs=4)
    with pytest.raises(ConfigError, match="total_steps=8"):
        fit(Normed(steps=4 * BATCHES), pruning(Rewind(0, "finetune")), max_epochs=4)
    fit(Normed(steps=4 * BATCHES), pruning(Rewind("3it", ["weights"])), max_epochs=4)


SCHEDULERS = optim.lr_scheduler
FITTING = {
    "constant": lambda o: SCHEDULERS.ConstantLR(o, 1.0),
    "cosine": lambda o: SCHEDULERS.CosineAnnealingLR(o, BATCHES),
    "restarts": lambda o: SCHEDULERS.CosineAnnealingWarmRestarts(o, 1),
    "polynomial": lambda o: SCHEDULERS.PolynomialLR(o, BATCHES),
    "multistep": lambda o: SCHEDULERS.MultiStepLR(o, [4, 6]),
    "one cycle": lambda o: SCHEDULERS.OneCycleLR(o, 0.1, BATCHES),
}
REFUSED = {
    "cosine": lambda o: SCHEDULERS.CosineAnnealingLR(o, 4 * BATCHES),
    "exponential": lambda o: SCHEDULERS.ExponentialLR(o, 0.99),
    "polynomial": lambda o: SCHEDULERS.PolynomialLR(o, 4 * BATCHES),
    "multistep": lambda o: SCHEDULERS.MultiStepLR(o, [16, 24]),
    "one cycle": lambda o: SCHEDULERS.OneCycleLR(o, 0.1, 4 * BATCHES),
    "warm-up": lambda o: SCHEDULERS.LinearLR(o, 0.1, total_iters=20),
    "too short": lambda o: SCHEDULERS.OneCycleLR(o, 0.1, BATCHES - 2),
}


class Scheduled(Net):
    def __init__(self, schedule, interval="step"):
        super().__init__()
        self.schedule, self.interval = schedule, interval

    def configure_optimizers(self):
        optimizer = SGD(self.parameters())
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": self.interval}]


@pytest.mark.parametrize("name", FITTING)
def test_schedules_of_one_round_are_taken(name):
    pruner = pruning("0it")
    fit(Scheduled(FITTING[name]), pruner, max_epochs=4)
    assert pruner.schedule_done


@pytest.mark.parametrize("name", REFUSED)
def test_longer_and_shorter_schedules_are_refused(name):
    with pytest.raises(ConfigError, match=r"one round|ends after"):
        fit(Scheduled(REFUSED[name]), pruning("0it"), max_epochs=4)


def test_schedules_by_epoch_are_counted_in_epochs():
    rounds = MagnitudePruning(0.75, schedule=ROUNDS(every="3ep"), rewind="0it")
    fit(Scheduled(lambda o: SCHEDULERS.PolynomialLR(o, 3), "epoch"), rounds, max_epochs=9)
    rounds = MagnitudePruning(0.75, schedule=ROUNDS(every="3ep"), rewind="0it")
    with pytest.raises(ConfigError, match="T_max=3"):
        fit(Scheduled(lambda o: SCHEDULERS.PolynomialLR(o, 9), "epoch"), rounds, max_epochs=9)


def test_a_module_is_told_how_long_a_round_is():
    class Asking(Normed):
        def configure_optimizers(self):
            self.steps = lr_schedule_steps(self.trainer)
            return super().configure_optimizers()

    module = Asking()
    fit(module, pruning(), max_epochs=4)
    assert module.steps == BATCHES
    fit(module := Net(), MagnitudePruning(0.5))
    assert lr_schedule_steps(module.trainer) is None


def test_shorter_later_rounds_end_where_the_schedule_ends():
    """Back to step k, a round has k steps less of the schedule before it than the first one."""
    seen = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(optimizer.param_groups[0]["lr"])

    rounds = Exponential(rate=0.5, begin=f"{BATCHES}it", every=f"{BATCHES - BACK}it")
    pruner = MagnitudePruning(0.875, schedule=rounds, rewind=f"{BACK}it")
    steps = BATCHES + 3 * (BATCHES - BACK)
    module = Normed()
    fit(module, pruner, Rates(), max_epochs=None, max_steps=steps)
    rate = SGD.keywords["lr"]
    whole = [rate * falling(BATCHES, step) for step in range(BATCHES)]
    assert seen == pytest.approx(whole + 3 * whole[BACK:])
    assert pruner.schedule_done
