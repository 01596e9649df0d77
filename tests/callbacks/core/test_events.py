# SPDX-License-Identifier: MIT
"""Events in the fit: planned sparsity at the planned step, and nowhere else."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from slow_cases import mark_rest_slow
from tiny_fits import BATCHES, WEIGHTS, Events, Net, copied, fit, loader, trainer, zeros

from regrow import (
    ConfigError,
    Cyclic,
    Exponential,
    Linear,
    MagnitudePruning,
    OneShot,
    StateError,
    Table,
)


def rounded(sparsity):
    """The sparsity of 144 weights nearest to the one asked for."""
    return round(round(sparsity * WEIGHTS) / WEIGHTS, 6)


CUBIC = [(step, 0.9 + (0 - 0.9) * (1 - (step - 8) / 16) ** 3) for step in (12, 16, 20)]
PLANS = {
    "one shot": ({"schedule": "one_shot", "begin": "5it"}, [(5, 0.9)]),
    "one shot at the start": ({"schedule": "one_shot", "begin": 0}, [(0, 0.9)]),
    "linear": (
        {"schedule": "linear", "begin": "8it", "end": "24it", "every": "8it"},
        [(16, 0.45), (24, 0.9)],
    ),
    "cubic": ({"begin": "1ep", "end": "3ep", "every": "4it"}, [*CUBIC, (24, 0.9)]),
    "cubic in fractions": ({"begin": 0.25, "end": 0.75, "every": 0.125}, [*CUBIC, (24, 0.9)]),
    "cubic with an end that is no multiple": (
        {"begin": "8it", "end": "24it", "every": "6it"},
        [(s, 0.9 - 0.9 * (1 - (s - 8) / 16) ** 3) for s in (14, 20)] + [(24, 0.9)],
    ),
    "cosine": (
        {"schedule": "cosine", "begin": 0, "end": "16it", "every": "4it"},
        [(s, 0.9 * (1 - math.cos(math.pi * s / 16)) / 2) for s in (4, 8, 12, 16)],
    ),
    "exponential": (
        {"schedule": Exponential(rate=0.5, every="1ep")},
        [(8, 0.5), (16, 0.75), (24, 0.875)],
    ),
    "exponential in rounds": (
        {"schedule": Exponential(rate=0.2, every="4it", rounds=3)},
        [(4, 0.2), (8, 0.36), (12, 0.488)],
    ),
    "cyclic": (
        {"schedule": Cyclic("4it", "20it", "8it")},
        [(4, 0.9), (12, 0.0), (20, 0.9)],
    ),
    "dense sparse dense": (
        {"schedule": Cyclic("1ep", "2ep", "1ep", last="dense")},
        [(8, 0.9), (16, 0.0)],
    ),
    "table": (
        {"schedule": Table({"1ep": 0.5, "13it": 0.75, 0.75: 0.9})},
        [(8, 0.5), (13, 0.75), (24, 0.9)],
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_planned_sparsity_at_the_planned_step(case):
    settings, plan = PLANS[case]
    sparsity = plan[-1][1] or 0.9
    if case == "exponential":
        sparsity = 0.875
    if case != "exponential in rounds":  # it says itself where it ends
        settings = {"sparsity": sparsity} | settings
    events, pruning, module = Events(), MagnitudePruning(**settings), Net()
    fit(module, events, pruning, max_epochs=4, val=loader())
    assert events.seen == [(step, rounded(s)) for step, s in plan]
    assert zeros(module) == round(plan[-1][1] * WEIGHTS)
    assert [(e["step"], e["epoch"]) for e in pruning.history] == [
        (step, step // BATCHES) for step, _ in plan
    ]
    assert pruning.schedule_done


def test_the_default_is_cubic_from_a_fifth_to_three_quarters():
    events, module = Events(), Net()
    fit(module, events, MagnitudePruning(0.9), max_epochs=25)  # 200 steps, an event every 2
    steps = [*list(range(42, 150, 2)), 150]
    levels = [rounded(0.9 - 0.9 * (1 - (step - 40) / 110) ** 3) for step in steps]
    expected, before = [], 0.0
    for step, level in zip(steps, levels, strict=True):
        expected.append((step, max(level, before)))
        before = max(level, before)
    assert events.seen == expected
    assert zeros(module) == round(0.9 * WEIGHTS)


class Weights(Callback):
    """Record the weights at each epoch's first batch, validation and checkpoint."""

    def __init__(self):
        self.validated, self.saved, self.masked = [], [], []

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(copied(pl_module))

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.saved.append({k: v.clone() for k, v in checkpoint["state_dict"].items()})


def test_validation_and_checkpoint_of_an_epoch_see_the_same_weights(tmp_path):
    seen, saved = Weights(), ModelCheckpoint(tmp_path, save_top_k=-1)
    pruning = MagnitudePruning(0.75, schedule=Linear("1ep", "4ep", "1ep"))
    events = Events()
    module = Net()
    fit(module, events, pruning, seen, saved, val=loader(), max_epochs=5, enable_checkpointing=True)
    assert events.steps == [16, 24, 32]
    assert len(seen.validated) == len(seen.saved) == 5
    for validated, kept in zip(seen.validated, seen.saved, strict=True):
        assert all(torch.equal(validated[key], kept[key]) for key in kept)
    levels = [sum(int((w == 0).sum()) for w in s.values() if w.dim() > 1) for s in seen.saved]
    assert levels == [0, 0, 36, 72, 108]


def test_no_event_happens_outside_training():
    events, pruning, module = Events(), MagnitudePruning(0.5, schedule=OneShot(0)), Net()
    made = trainer(events, pruning, num_sanity_val_steps=2)
    made.validate(module, loader(), verbose=False)
    made.test(module, loader(), verbose=False)
    made.predict(module, loader())
    assert events.seen == []
    assert zeros(module) == 0
    made.fit(module, loader(), loader())
    assert events.seen == [(0, 0.5)]
    made.validate(module, loader(), verbose=False)
    made.test(module, loader(), verbose=False)
    made.predict(module, loader())
    assert events.seen == [(0, 0.5)]
    assert zeros(module) == WEIGHTS // 2


def test_no_event_happens_during_sanity_checking():
    class Sane(Callback):
        def on_sanity_check_end(self, trainer, pl_module):
            assert zeros(pl_module) == 0

    module = Net()
    pruning = MagnitudePruning(0.5, schedule=OneShot(0))
    fit(module, Sane(), pruning, val=loader(), num_sanity_val_steps=2)
    assert zeros(module) == WEIGHTS // 2


@pytest.mark.parametrize("sparsity", mark_rest_slow([0.5, 0.8], [0.8]))
@pytest.mark.parametrize("times", [{}, {"begin": "100ep", "end": "500ep", "every": "1ep"}])
@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "movement", "random"])
def test_fast_dev_run_prunes_once_at_its_first_step(times, sparsity, criterion):
    events, module = Events(), Net()
    pruning = MagnitudePruning(sparsity, criterion=criterion, **times)
    fit(module, events, pruning, val=loader(), fast_dev_run=True)
    assert events.seen == [(0, rounded(sparsity))]
    assert zeros(module) == round(sparsity * WEIGHTS)


def test_events_without_validation_or_at_several_validations_an_epoch():
    for val in ({}, {"val": loader(), "val_check_interval": 0.25}):
        events = Events()
        fit(Net(), events, MagnitudePruning(0.5, schedule=Table({"3it": 0.25, "1ep": 0.5})), **val)
        assert events.seen == [(3, 0.25), (8, 0.5)]


def test_layer_targets_move_in_proportion():
    events, module = Events(), Net()
    pruning = MagnitudePruning(
        0.75, schedule=Linear(0, "9it", "3it"), layers={"body.2": 0.5}, distribution="uniform"
    )
    counts = []

    class Counts(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            counts.append([int((layer.weight == 0).sum()) for layer in pl_module.body[::2]])

    fit(module, events, pruning, Counts())
    for step, share in [(2, 0), (3, 1 / 3), (6, 2 / 3), (9, 1), (15, 1)]:
        assert counts[step] == [round(96 * 0.75 * share), round(48 * 0.5 * share)]


def test_layer_targets_without_a_general_target_raise():
    """Layer targets move in proportion to the general target, which is missing here."""
    with pytest.raises(ConfigError, match="write include="):
        MagnitudePruning(0, schedule=OneShot("3it"), layers={"body.2": 0.5})
    module = Net()
    fit(module, MagnitudePruning(0.5, schedule=OneShot("3it"), include="body.2"))
    assert [int((layer.weight == 0).sum()) for layer in module.body[::2]] == [0, 24]


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk", "lamp"])
def test_every_distribution_reaches_the_target(distribution):
    module = Net()
    pruning = MagnitudePruning(0.7, distribution=distribution, begin=0, end="8it", every="2it")
    fit(module, pruning)
    assert zeros(module) == round(0.7 * WEIGHTS)


@pytest.mark.parametrize(
    ("granularity", "sparsity", "include"),
    [("2:4", 0.5, None), ("1:4", 0.75, "body.2"), ("block:2x2", 0.5, "body.0")],
)
def test_every_granularity_reaches_the_target(granularity, sparsity, include):
    module = Net()
    pruning = MagnitudePruning(
        sparsity,
        granularity=granularity,
        include=include or "body.2",
        begin=0,
        end="8it",
        every="2it",
    )
    fit(module, pruning)
    weight = module.body[0 if include == "body.0" else 2].weight.detach()
    assert (weight == 0).sum() == round(sparsity * weight.numel())
    if ":" in granularity and granularity[0].isdigit():
        groups = weight.reshape(weight.shape[0], -1, 4)
        assert ((groups != 0).sum(-1) == int(granularity[0])).all()


class Skips(Net):
    """Skips batches: Lightning calls the hooks of such a step, which has no gradients."""

    def __init__(self, *steps):
        super().__init__()
        self.steps = steps

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if self.trainer.global_step in self.steps else loss


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "movement"])
def test_events_on_gradients_wait_for_a_batch_that_is_not_skipped(criterion):
    events, module = Events(), Skips(3, 4)
    pruning = MagnitudePruning(0.5, schedule=OneShot("3it"), criterion=criterion)
    fit(module, events, pruning)
    assert events.seen == [(3 if criterion == "magnitude" else 5, 0.5)]
    assert zeros(module) == WEIGHTS // 2


def test_a_batch_skipped_within_an_accumulation_window_delays_no_event():
    class First(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 2 else loss

    events = Events()
    pruning = MagnitudePruning(0.5, schedule=OneShot("1it"), criterion="taylor")
    fit(First(), events, pruning, accumulate_grad_batches=2)
    assert events.seen == [(1, 0.5)]


@pytest.mark.parametrize("include", [None, "body.0"])
def test_a_layer_that_never_has_a_gradient_raises_with_its_name(include):
    class Unused(Net):
        def loss(self, batch):
            return self.body[2](torch.ones(4, 16)).square().mean() + 0 * batch[0].sum()

    pruning = MagnitudePruning(0.5, schedule=OneShot("3it"), criterion="taylor", include=include)
    with pytest.raises(StateError, match=r"gradient of body\.0\.weight, which has none"):
        fit(Unused(), pruning)
