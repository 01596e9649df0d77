# SPDX-License-Identifier: MIT
"""Learning-rate schedules must span one round of a fit that rewinds."""

from functools import partial

import pytest
from lightning.pytorch import Callback
from rewinding_fits import BACK, ROUNDS, Normed, falling, pruning
from tiny_fits import BATCHES, SGD, Net, fit
from torch import optim

from regrow import ConfigError, Exponential, MagnitudePruning, Rewind

SCHEDULERS = optim.lr_scheduler
COSINE = SCHEDULERS.CosineAnnealingLR
FITTING = {
    "constant": lambda o: SCHEDULERS.ConstantLR(o, 1.0),
    "cosine": lambda o: COSINE(o, BATCHES),
    "restarts": lambda o: SCHEDULERS.CosineAnnealingWarmRestarts(o, 1),
    "polynomial": lambda o: SCHEDULERS.PolynomialLR(o, BATCHES),
    "multistep": lambda o: SCHEDULERS.MultiStepLR(o, [4, 6]),
    "one cycle": lambda o: SCHEDULERS.OneCycleLR(o, 0.1, BATCHES),
}
FIT = 4 * BATCHES
REFUSED = {  # and what the error says to write
    "cosine": (lambda o: COSINE(o, FIT), r"T_max=8, or regrow\.restart_each_round\(CosineAnn"),
    "exponential": (lambda o: SCHEDULERS.ExponentialLR(o, 0.99), "gamma for 8 steps, or regrow"),
    "polynomial": (lambda o: SCHEDULERS.PolynomialLR(o, FIT), "total_iters=8, or regrow"),
    "multistep": (lambda o: SCHEDULERS.MultiStepLR(o, [16, 24]), "milestones for 8 steps, or"),
    "step": (lambda o: SCHEDULERS.StepLR(o, 9), "step_size for 8 steps, or regrow"),
    "lambda": (lambda o: SCHEDULERS.LambdaLR(o, partial(falling, FIT)), "lr_lambda for 8 steps"),
    "one cycle": (lambda o: SCHEDULERS.OneCycleLR(o, 0.1, FIT), "total_steps=8, or regrow"),
    "warm-up": (lambda o: SCHEDULERS.LinearLR(o, 0.1, total_iters=20), "total_iters=8, or"),
    "too short": (
        lambda o: SCHEDULERS.OneCycleLR(o, 0.1, BATCHES - 2), "ends after 6 steps.*write regrow"
    ),
}  # fmt: skip


class Scheduled(Net):
    def __init__(self, schedule, interval="step"):
        super().__init__()
        self.schedule, self.interval = schedule, interval

    def configure_optimizers(self):
        optimizer = SGD(self.parameters())
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": self.interval}]


@pytest.mark.parametrize("name", FITTING)
def test_schedules_of_one_round_are_accepted(name):
    pruner = pruning("0it")
    fit(Scheduled(FITTING[name]), pruner, max_epochs=4)
    assert pruner.reached


@pytest.mark.parametrize("name", REFUSED)
def test_other_schedules_raise_with_their_own_argument(name):
    schedule, message = REFUSED[name]
    module = Scheduled(schedule)
    with pytest.raises(ConfigError, match=message):
        fit(module, pruning("0it"), max_epochs=4)
    assert module.trained == 0


def test_schedule_over_the_whole_fit_raises_if_the_rate_is_rewound():
    class Usual(Net):
        def configure_optimizers(self):
            optimizer = SGD(self.parameters())
            scheduler = COSINE(optimizer, self.trainer.estimated_stepping_batches)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    for what in ("weights", "lr", "finetune"):
        with pytest.raises(ConfigError, match="not the whole fit: write T_max=8, or regrow"):
            fit(Usual(), pruning(Rewind(0, what)), max_epochs=4)
    fit(Usual(), pruning(Rewind("3it", ["weights"])), max_epochs=4)


def test_schedules_by_epoch_are_counted_in_epochs():
    def rounds():
        return MagnitudePruning(0.75, schedule=ROUNDS(every="3ep"), rewind="0it")

    fit(Scheduled(lambda o: SCHEDULERS.PolynomialLR(o, 3), "epoch"), rounds(), max_epochs=9)
    module = Scheduled(lambda o: COSINE(o, 9), "epoch")
    with pytest.raises(ConfigError, match=r'T_max=3, or regrow.*\.\.\., interval="epoch"\)'):
        fit(module, rounds(), max_epochs=9)


def test_round_longer_than_the_period_of_a_cosine_raises():
    """Rounds back to step 3 reach step 11 of the schedule, and torch's cosine is periodic."""
    module = Scheduled(lambda o: COSINE(o, BATCHES))
    with pytest.raises(ConfigError, match=r"rises again until step 11.*restart_each_round"):
        fit(module, pruning("3it"), max_epochs=4)
    with pytest.raises(ConfigError, match="rises again until step 32"):
        fit(module, pruning(Rewind("0it", "finetune")), max_epochs=4)


def test_shorter_later_rounds_end_where_the_schedule_ends():
    """Rounds rewound to step k have k steps fewer than the first one."""
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
    assert pruner.reached
