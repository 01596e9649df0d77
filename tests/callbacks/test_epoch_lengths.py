# SPDX-License-Identifier: MIT
"""Epochs of changing length: an epoch time means the epoch, a fraction that of the real fit."""

import warnings

import pytest
from changing_epochs import LENGTHS, STARTS, Changing, Epochs, fit_changing
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from tiny_fits import SGD, WEIGHTS, Net, fit, loader, samples, stream
from torch.utils.data import DataLoader, Sampler

from regrow import ConfigError, Cyclic, Exponential, Linear, MagnitudePruning, OneShot, Table

BY_EPOCH = Table({"1ep": 0.125, "2ep": 0.25, "3ep": 0.375, "5ep": 0.5})
ZEROS = [0, WEIGHTS // 8, WEIGHTS // 4, 3 * WEIGHTS // 8, 3 * WEIGHTS // 8, WEIGHTS // 2]
AT = [(1, 0), (2, 0), (3, 0), (5, 0)]  # epoch and batch of its events


def by_epoch():
    return MagnitudePruning(0.5, schedule=BY_EPOCH)


def check_by_epoch(epochs):
    assert epochs.at == AT
    assert epochs.zeros == ZEROS


@pytest.mark.parametrize("lengths", [LENGTHS, (2, 5, 9, 1, 4, 3), (9, 7, 5, 4, 2, 1)])
def test_epoch_times_follow_a_loader_that_is_reloaded(lengths):
    epochs = Epochs()
    fit_changing(Net(), epochs, by_epoch(), data=Changing(lengths))
    check_by_epoch(epochs)
    assert epochs.steps == [sum(lengths[:epoch]) for epoch in (1, 2, 3, 5)]


def test_epoch_times_follow_a_loader_that_is_reloaded_every_second_epoch():
    epochs = Epochs()
    lengths = (4, 4, 9, 9, 2, 2)
    fit_changing(
        Net(), epochs, by_epoch(), data=Changing(lengths), reload_dataloaders_every_n_epochs=2
    )
    check_by_epoch(epochs)


@pytest.mark.parametrize("limit", [0.5, 4])
def test_epoch_times_follow_limit_train_batches(limit):
    epochs = Epochs()
    fit_changing(Net(), epochs, by_epoch(), limit_train_batches=limit)
    check_by_epoch(epochs)
    lengths = [int(n * limit) if limit == 0.5 else min(n, limit) for n in LENGTHS]
    assert epochs.steps == [sum(lengths[:epoch]) for epoch in (1, 2, 3, 5)]


def test_epoch_times_follow_a_limit_that_is_changed_in_the_fit():
    class Limits(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.limit_train_batches = 2 + trainer.current_epoch

    epochs = Epochs()
    fit_changing(Net(), epochs, Limits(), by_epoch(), data=Changing((8,) * 6))
    check_by_epoch(epochs)


def test_epoch_times_follow_a_sampler_that_ends_before_the_announced_length():
    """Lightning asks for the length once; the sampler gives fewer batches in later epochs."""

    class Shrinking(Sampler):
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter(range(4 * (8 - self.epoch)))

        def __len__(self):
            return 32

    epochs = Epochs()
    data = DataLoader(samples(), batch_size=4, sampler=Shrinking())
    fit(Net(), epochs, by_epoch(), data=data, max_epochs=6)
    check_by_epoch(epochs)
    assert epochs.steps == [8, 15, 21, 30]


def test_epoch_times_follow_a_stream_that_is_shorter_than_its_limit():
    epochs = Epochs()
    fit(Net(), epochs, by_epoch(), data=stream(count=24), limit_train_batches=10, max_epochs=6)
    check_by_epoch(epochs)
    assert epochs.steps == [6, 12, 18, 30]


def test_epoch_times_follow_a_module_that_skips_the_rest_of_epochs():
    class Skips(Net):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 5 - self.trainer.current_epoch else None

    epochs = Epochs()
    fit(Skips(), epochs, by_epoch(), max_epochs=6)
    check_by_epoch(epochs)
    assert epochs.steps == [5, 9, 12, 15]


@pytest.mark.parametrize("accumulate", [2, 3, 20])
def test_epoch_times_follow_accumulation(accumulate):
    epochs = Epochs()
    fit_changing(Net(), epochs, by_epoch(), accumulate_grad_batches=accumulate)
    check_by_epoch(epochs)
    lengths = [-(-n // accumulate) for n in LENGTHS]
    assert epochs.steps == [sum(lengths[:epoch]) for epoch in (1, 2, 3, 5)]


@pytest.mark.parametrize("first", [True, False])
def test_epoch_times_follow_accumulation_schedulers(first):
    epochs, scheduler = Epochs(), GradientAccumulationScheduler({0: 3, 2: 1, 4: 2})
    callbacks = (scheduler, by_epoch()) if first else (by_epoch(), scheduler)
    fit_changing(Net(), epochs, *callbacks)
    check_by_epoch(epochs)
    lengths = [-(-n // by) for n, by in zip(LENGTHS, (3, 3, 1, 1, 2, 2), strict=True)]
    assert epochs.steps == [sum(lengths[:epoch]) for epoch in (1, 2, 3, 5)]


def test_epoch_times_follow_accumulation_that_the_module_changes():
    class Accumulates(Net):
        def on_train_epoch_start(self):
            self.trainer.accumulate_grad_batches = max(1, 8 >> self.trainer.current_epoch)

    epochs = Epochs()
    fit(Accumulates(), epochs, by_epoch(), accumulate_grad_batches=8, max_epochs=6)
    check_by_epoch(epochs)
    assert epochs.steps == [1, 3, 7, 23]


def test_epoch_times_follow_accumulation_that_falls_within_an_epoch():
    class Falls(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.accumulate_grad_batches = 4 if batch_idx < 4 else 1

    epochs = Epochs()
    fit(Net(), epochs, Falls(), by_epoch(), accumulate_grad_batches=4, max_epochs=6)
    check_by_epoch(epochs)
    assert epochs.steps == [5, 10, 15, 25]


def test_epoch_times_follow_batches_under_manual_optimisation():
    class Manual(Net):
        def __init__(self):
            super().__init__(SGD)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for _ in range(1 + batch_idx % 2):
                self.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                self.optimizers().step()

    epochs = Epochs()
    fit_changing(Manual(), epochs, by_epoch())
    check_by_epoch(epochs)


@pytest.mark.parametrize("check", [{"val_check_interval": 0.5}, {"val_check_interval": 1}, {}])
def test_epoch_times_do_not_depend_on_validation(check):
    epochs = Epochs()
    fit_changing(Net(), epochs, by_epoch(), **check)
    check_by_epoch(epochs)


def test_epoch_times_in_a_second_fit():
    module, epochs = Net(), Epochs()
    fit_changing(module, MagnitudePruning(0.125, schedule=OneShot("1ep")))
    fit_changing(module, epochs, by_epoch(), data=Changing(LENGTHS[::-1]))
    assert epochs.at == AT


def test_max_steps_beside_epoch_times():
    epochs = Epochs()
    lengths = Changing((4, 2, 5, 10, 3, 8))  # epoch 5 begins at step 24
    with pytest.warns(UserWarning, match="the fit ends before step 25"):  # while in epoch 3
        fit_changing(Net(), epochs, by_epoch(), data=lengths, max_steps=25)
    assert epochs.at == AT


def test_unlimited_epochs():
    epochs = Epochs()
    lengths = Changing(LENGTHS + (4,) * 3)
    fit_changing(Net(), epochs, by_epoch(), data=lengths, max_epochs=-1, max_steps=41)
    assert epochs.at == AT


SCHEDULES = {
    "linear": (Linear("1ep", "5ep", "1ep"), [0, 0, 18, 36, 54, 72]),
    "exponential": (Exponential(0.5, "1ep"), [0, 72, 108, 115, 115, 115]),
    "cyclic": (Cyclic("1ep", "5ep", "2ep"), [0, 72, 72, 0, 0, 72]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_epoch_has_the_sparsity_that_its_schedule_says(name):
    schedule, expected = SCHEDULES[name]
    sparsity = 0.8 if name == "exponential" else 0.5
    epochs = Epochs()
    fit_changing(Net(), epochs, MagnitudePruning(sparsity, schedule=schedule))
    assert epochs.zeros == expected if name != "cyclic" else epochs.zeros[1:3] == expected[1:3]
    assert [batch for _, batch in epochs.at] == [0] * len(epochs.at)


def test_an_interval_of_an_epoch_from_the_middle_of_one_comes_once_an_epoch():
    epochs = Epochs()
    pruning = MagnitudePruning(0.5, schedule=Linear("4it", "5ep", "1ep"))
    fit_changing(Net(), epochs, pruning, data=Changing((8, 4, 12, 8, 2, 6)))
    assert epochs.at == [(1, 2), (2, 6), (3, 4), (4, 1), (5, 0)]


def planned_by_hand(lengths, fraction):
    """The step of an event at a fraction of a fit that is forecast anew as each epoch begins."""
    for epoch, length in enumerate(lengths):
        start = sum(lengths[:epoch])
        step = round(fraction * (start + length * (len(lengths) - epoch)))
        if step < start + length:
            return max(step, start)
    return None


@pytest.mark.parametrize("lengths", [LENGTHS, (2, 5, 9, 1, 4, 3), (9, 7, 5, 4, 2, 1)])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.75])
def test_fractions_are_planned_again_as_epochs_change(lengths, fraction):
    epochs = Epochs()
    pruning = MagnitudePruning(0.5, schedule=OneShot(fraction))
    fit_changing(Net(), epochs, pruning, data=Changing(lengths))
    assert epochs.steps == [planned_by_hand(lengths, fraction)]


@pytest.mark.parametrize("lengths", [LENGTHS, (2, 5, 9, 1, 4, 3), (20, 1, 1, 1, 1, 1)])
def test_the_default_schedule_reaches_its_target_and_never_falls(lengths):
    epochs = Epochs()
    module, pruning = Net(), MagnitudePruning(0.5)
    fit_changing(module, epochs, pruning, data=Changing(lengths))
    assert epochs.zeros[-1] == WEIGHTS // 2
    assert epochs.zeros == sorted(epochs.zeros)
    assert pruning.schedule_done


def test_an_event_whose_step_has_passed_happens_at_once():
    epochs = Epochs()
    pruning = MagnitudePruning(0.5, schedule=Table({0.25: 0.25, 0.9: 0.5}))
    fit_changing(Net(), epochs, pruning, data=Changing((20, 6, 6, 6)), max_epochs=4)
    assert epochs.at == [(1, 0), (3, 2)]  # of 80 steps 20 and 72, then of 38 steps 10 and 34
    assert epochs.zeros[-1] == WEIGHTS // 2


def test_a_schedule_that_has_no_plan_for_such_epochs_raises_by_name():
    """Of {"2ep", "20it"} the first would come last."""
    module = Net()
    pruning = MagnitudePruning(0.8, schedule=Table({"2ep": 0.25, "20it": 0.8}))
    with pytest.raises(ConfigError, match=r"epochs have other lengths.*follow one another"):
        fit_changing(module, pruning, data=Changing((8, 14, 8, 8)), max_epochs=4)
    assert module.trained == 8


@pytest.mark.parametrize(
    ("schedule", "step"), [(OneShot("20it"), 20), (Exponential(0.5, "6it"), 18)]
)
def test_an_event_past_the_end_causes_a_warning_at_once(schedule, step):
    """The epochs to come may be longer again; if not, the end says so too."""
    message = rf"the fit ends before step 14, and the last pruning event, at step {step}"
    for last, expected in [(2, False), (12, True)]:
        pruning, data = MagnitudePruning(0.8, schedule=schedule), Changing((8, 2, 2, last))
        with pytest.warns(UserWarning, match=message):
            fit_changing(Net(), pruning, data=data, max_epochs=4)
        assert pruning.schedule_done is expected
        assert not expected or pruning.history[-1]["step"] == step


def test_a_loader_that_loses_its_length_raises_by_name():
    class Loses(Changing):
        def train_dataloader(self):
            return stream() if self.trainer.current_epoch else loader()

    module = Net()
    with pytest.raises(ConfigError, match=r"epochs have other lengths.*loader has no length"):
        fit_changing(module, MagnitudePruning(0.5, schedule=OneShot("2ep")), data=Loses())
    assert module.trained == 8


def warned(*callbacks, module=None, **kw):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(module or Net(), *callbacks, **kw)
    return [text for text in (str(w.message) for w in seen) if "planned event" in text]


def test_a_last_epoch_that_ends_early_is_named_as_the_cause():
    pruning = MagnitudePruning(0.5, schedule=OneShot("14it"))
    [text] = warned(pruning, data=stream(count=24), limit_train_batches=8)
    assert "12 steps instead of 14" in text  # 6 + 6, where 6 + 8 were planned
    assert "optimizer" not in text


def test_raw_optimizers_are_named_as_the_cause():
    class Raw(Net):
        def __init__(self):
            super().__init__(SGD)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().optimizer.step()

    [text] = warned(MagnitudePruning(0.5, schedule=OneShot("4it")), module=Raw())
    assert "use self.optimizers()" in text


def test_epochs_of_one_length_are_planned_once(monkeypatch):
    pruning = by_epoch()
    plans = []
    plan = pruning.session.strategy.plan
    monkeypatch.setattr(
        pruning.session.strategy, "plan", lambda *given: plans.append(given) or plan(*given)
    )
    fit(Net(), pruning, max_epochs=6)
    assert len(plans) == 1
    assert STARTS[1] == 8
