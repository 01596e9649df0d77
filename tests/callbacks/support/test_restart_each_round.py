# SPDX-License-Identifier: MIT
"""Schedules that restart each round, against closed formulas and loops without Lightning."""

import math
from functools import partial

import hydra.utils
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from rewinding_fits import ROUNDS, Normed
from tiny_fits import ADAM, BATCHES, SGD, Net, copied, equal, fit, read, samples, stream
from torch.optim import lr_scheduler as schedulers

import regrow
from regrow import ConfigError, Exponential, MagnitudePruning, RandomState, Rewind
from regrow.callbacks.support.lr_rounds import RoundLR
from regrow.data.tensor_loader import BatchLoader

RATE = SGD.keywords["lr"]
COSINE = schedulers.CosineAnnealingLR


class Rates(Callback):
    """The learning rates with which each step was made, one an optimizer."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


class Scheduled(Normed):
    def __init__(self, scheduler=COSINE, interval="step", make=SGD, told=None, **settings):
        super().__init__(make)
        self.scheduler, self.interval, self.settings = scheduler, interval, settings
        self.told = told or interval

    def configure_optimizers(self):
        optimizer = self.make(self.parameters())
        scheduler = regrow.restart_each_round(
            self.scheduler, optimizer, self.trainer, interval=self.interval, **self.settings
        )
        return [optimizer], [{"scheduler": scheduler, "interval": self.told}]


def warm_cosine(optimizer, total_steps):
    rise = total_steps // 4
    parts = [schedulers.LinearLR(optimizer, 0.1, total_iters=rise), COSINE(optimizer, 6)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[rise])


def chained(optimizer, total_steps):
    parts = [COSINE(optimizer, total_steps), schedulers.ExponentialLR(optimizer, 0.9)]
    return schedulers.ChainedScheduler(parts)


KINDS = {  # what is given, and the same without regrow
    "cosine": (COSINE, lambda o: COSINE(o, BATCHES)),
    "cosine to a floor": (partial(COSINE, eta_min=0.01), lambda o: COSINE(o, BATCHES, 0.01)),
    "one cycle": (
        partial(schedulers.OneCycleLR, max_lr=0.3),
        lambda o: schedulers.OneCycleLR(o, 0.3, BATCHES),
    ),
    "step": (partial(schedulers.StepLR, step_size=3),) * 2,
    "multistep": (partial(schedulers.MultiStepLR, milestones=[4, 6]),) * 2,
    "lambda": (partial(schedulers.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),) * 2,
    "exponential": (partial(schedulers.ExponentialLR, gamma=0.8),) * 2,
    "polynomial": (schedulers.PolynomialLR, lambda o: schedulers.PolynomialLR(o, BATCHES)),
    "warm-up": (partial(schedulers.LinearLR, total_iters=3),) * 2,
    "restarts": (partial(schedulers.CosineAnnealingWarmRestarts, T_0=4),) * 2,
    "sequential": (warm_cosine, lambda o: warm_cosine(o, BATCHES)),
    "chained": (chained, lambda o: chained(o, BATCHES)),
}


def one_round(make, steps, hold):
    """The rates of one training without regrow, the last one repeated `hold` times."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)])
    scheduler, seen = make(optimizer), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(seen) < steps or not isinstance(scheduler, schedulers.OneCycleLR):
            scheduler.step()
    return seen + [optimizer.param_groups[0]["lr"]] * hold


def test_cosine_rounds_equal_equation_5_of_sgdr():
    """Loshchilov and Hutter 2017: T_i = the steps of a round, T_cur = those since its start."""
    fit(Scheduled(eta_min=0.01), rates := Rates(), rounds("0it"), max_epochs=4)
    expected = [
        0.01 + (RATE - 0.01) * (1 + math.cos(math.pi * (step % BATCHES) / BATCHES)) / 2
        for step in range(4 * BATCHES)
    ]
    assert rates.seen == pytest.approx(expected, rel=1e-9)


def rounds(rewind, **kw):
    return MagnitudePruning(0.875, schedule=ROUNDS(), rewind=rewind, **kw)


@pytest.mark.parametrize("back", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_scheduler_restarts_and_holds_its_last_rate(kind, back):
    given, alone = KINDS[kind]
    whole = one_round(alone, BATCHES, back)
    fit(Scheduled(given), rates := Rates(), rounds(f"{back}it"), max_epochs=4)
    assert rates.seen == pytest.approx([*whole[:BATCHES], *3 * whole[back:]], abs=1e-9)


def test_fine_tuning_holds_the_last_rate():
    for kind in ("cosine to a floor", "one cycle"):
        given, alone = KINDS[kind]
        fit(Scheduled(given), rates := Rates(), rounds(Rewind(0, "finetune")), max_epochs=4)
        assert rates.seen == pytest.approx(one_round(alone, BATCHES, 3 * BATCHES), abs=1e-9)


def test_rounds_in_epochs_work_with_accumulation():
    """Three epochs a round, four steps an epoch."""
    pruning = MagnitudePruning(0.75, schedule=ROUNDS(every="3ep"), rewind="0it")
    module = Scheduled(interval="epoch")
    fit(module, rates := Rates(), pruning, max_epochs=9, accumulate_grad_batches=2)
    cosine = [RATE * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
    assert rates.seen == pytest.approx(3 * [rate for rate in cosine for _ in range(4)])


def test_rounds_follow_changing_accumulation():
    """Epochs of four steps, then of eight: later rounds are longer, and their length counts."""

    def rates(interval):
        pruning = MagnitudePruning(0.75, schedule=ROUNDS(every="2ep"), rewind="0it")
        grows = GradientAccumulationScheduler({0: 2, 2: 1})
        fit(Scheduled(interval=interval), seen := Rates(), pruning, grows, max_epochs=6)
        return seen.seen

    cosine = [RATE * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)]
    assert rates("step") == pytest.approx([*cosine[:8], *cosine, *cosine])
    halves = [RATE, RATE / 2]
    expected = [rate for steps in (4, 8, 8) for rate in halves for _ in range(steps)]
    assert rates("epoch") == pytest.approx(expected)


class TwoOptimizers(Net):
    """Each layer has an optimizer of its own, and both schedules are stepped by hand."""

    def __init__(self, interval="step"):
        super().__init__()
        self.automatic_optimization, self.interval, self.rates = False, interval, []

    def configure_optimizers(self):
        optimizers = [SGD(self.body[0].parameters()), SGD(self.body[2].parameters(), lr=0.2)]
        return optimizers, [
            regrow.restart_each_round(COSINE, each, self.trainer, interval=self.interval)
            for each in optimizers
        ]

    def training_step(self, batch, batch_idx):
        self.rates.append([each.param_groups[0]["lr"] for each in self.optimizers()])
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        if self.interval == "step":
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def on_train_epoch_end(self):
        if self.interval == "epoch":
            for scheduler in self.lr_schedulers():
                scheduler.step()


def test_several_optimizers_work_under_manual_optimisation():
    fit(module := TwoOptimizers(), rounds("0it"), max_epochs=4)
    cosine = [(1 + math.cos(math.pi * step / BATCHES)) / 2 for step in range(BATCHES)]
    for index, rate in enumerate((RATE, 0.2)):
        seen = [each[index] for each in module.rates]
        assert seen == pytest.approx(4 * [rate * factor for factor in cosine])
    pruning = MagnitudePruning(0.75, schedule=ROUNDS(every="2ep"), rewind="0it")
    fit(module := TwoOptimizers("epoch"), pruning, max_epochs=6)
    epochs = [each[1] for each in module.rates[::BATCHES]]
    assert epochs == pytest.approx(3 * [0.2, 0.1])


@pytest.mark.parametrize("kind", ["cosine", "one cycle", "sequential", "multistep"])
def test_resumed_within_a_round_is_uninterrupted(kind, tmp_path):
    def run(*saving, **kw):
        module, rates = Scheduled(KINDS[kind][0], make=ADAM), Rates()
        data = BatchLoader(*samples().tensors, batch_size=4, shuffle=True, seed=3)
        callbacks = [RandomState(), rates, rounds("3it"), *saving]
        made = fit(module, *callbacks, data=data, max_epochs=4, **kw)
        made.save_checkpoint(tmp_path / "end.ckpt")
        saved = read(tmp_path / "end.ckpt")
        return rates.seen, [copied(module), saved["optimizer_states"], saved["lr_schedulers"]]

    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole, state = run(every, enable_checkpointing=True)
    for cut in (2, 8, 12, 19, 24):
        seen, resumed = run(ckpt_path=tmp_path / f"step={cut}.ckpt")
        assert seen == whole[cut:], cut
        assert equal(state, resumed), cut


def test_fit_without_rewinding_uses_the_scheduler_over_the_whole_fit():
    fit(module := Scheduled(eta_min=0.01), MagnitudePruning(0.5), max_epochs=4)
    [config] = module.trainer.lr_scheduler_configs
    assert type(config.scheduler) is COSINE
    assert (config.scheduler.T_max, config.scheduler.eta_min) == (4 * BATCHES, 0.01)
    fit(module := Scheduled(interval="epoch"), max_epochs=4)
    assert module.trainer.lr_scheduler_configs[0].scheduler.T_max == 4
    fit(module := Scheduled(), max_epochs=-1, max_steps=5)
    assert module.trainer.lr_scheduler_configs[0].scheduler.T_max == 5
    fit(module := Scheduled(), rounds("0it"), fast_dev_run=True)
    assert type(module.trainer.lr_scheduler_configs[0].scheduler) is COSINE


def test_second_fit_has_its_own_rounds():
    pruning = MagnitudePruning(0.5, schedule=Exponential(0.5, "1ep"), rewind="0it")
    module = Scheduled()
    fit(module, pruning, max_epochs=2)
    fit(module, rates := Rates(), pruning, max_epochs=2)  # sparse already: no rounds
    cosine = [RATE * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)]
    assert rates.seen == pytest.approx(cosine)


def test_wrapper_can_be_built_from_hydra():
    scheduler = hydra.utils.instantiate({
        "_target_": "regrow.restart_each_round",
        "_partial_": True,
        "scheduler": {
            "_target_": "torch.optim.lr_scheduler.OneCycleLR", "_partial_": True, "max_lr": 0.3,
        },
    })  # fmt: skip

    class Module(Net):
        def configure_optimizers(self):
            optimizer = SGD(self.parameters())
            made = scheduler(optimizer=optimizer, trainer=self.trainer)
            return {
                "optimizer": optimizer, "lr_scheduler": {"scheduler": made, "interval": "step"},
            }  # fmt: skip

    fit(Module(), rates := Rates(), rounds("0it"), max_epochs=4)
    assert rates.seen == pytest.approx(4 * one_round(KINDS["one cycle"][1], BATCHES, 0))


INVALID = {
    "plateau": (
        {"scheduler": schedulers.ReduceLROnPlateau}, "ReduceLROnPlateau is no schedule of steps"
    ),
    "something else": ({"scheduler": lambda optimizer: 3}, "int is no schedule of steps"),
    "late milestones": (
        {"scheduler": schedulers.MultiStepLR, "milestones": [4, 16]},
        r"milestones=\[4, 16\] is later than the end of a round of 8 steps",
    ),
    "a longer length": ({"T_max": 32}, "T_max=32 is later than the end of a round of 8"),
    "a longer length in a partial": ({"scheduler": partial(COSINE, T_max=32)}, "T_max=32 is later"),
    "an interval": ({"interval": "batch"}, "interval must be one of epoch, step, got 'batch'"),
    "another interval": ({"told": "epoch"}, r'steps the scheduler.*write.*"interval": "step"'),
}  # fmt: skip


@pytest.mark.parametrize("kind", INVALID)
def test_schedulers_that_cannot_restart_raise(kind):
    settings, message = INVALID[kind]
    module = Scheduled(**settings)
    with pytest.raises(ConfigError, match=message):
        fit(module, rounds("0it"), max_epochs=4)
    assert module.trained == 0


def test_scheduler_object_instead_of_a_class_raises():
    module = Scheduled(COSINE(SGD([torch.zeros(1)]), 8))
    with pytest.raises(ConfigError, match=r"restart_each_round\(CosineAnnealingLR, optimizer"):
        fit(module, rounds("0it"), max_epochs=4)


def test_unknown_lengths_raise():
    with pytest.raises(ConfigError, match=r"write max_epochs=N or max_steps=N"):
        fit(Scheduled(), max_epochs=-1)
    with pytest.raises(ConfigError, match=r"write max_epochs=N or max_steps=N"):
        fit(Scheduled(), data=stream(endless=True))


def test_steps_under_manual_optimisation_raise():
    pruning = MagnitudePruning(0.75, schedule=ROUNDS(every="8it"), rewind="0it")
    with pytest.raises(ConfigError, match="write the times of the pruning schedule in epochs"):
        fit(TwoOptimizers(), pruning, max_epochs=4)


def test_get_last_lr_equals_the_optimizers_rate():
    fit(module := Scheduled(), rounds("3it"), max_epochs=4)
    [scheduler] = [config.scheduler for config in module.trainer.lr_scheduler_configs]
    assert isinstance(scheduler, RoundLR)
    assert scheduler.get_last_lr() == [trainer_rate(module)]


def trainer_rate(module):
    return module.trainer.optimizers[0].param_groups[0]["lr"]
