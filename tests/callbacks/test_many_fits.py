# SPDX-License-Identifier: MIT
"""Several fits with one callback, and tuner runs, which are no fits."""

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner
from slow_cases import mark_rest_slow
from tiny_fits import (
    ADAM,
    BATCHES,
    WEIGHTS,
    Events,
    Net,
    Watch,
    copied,
    loader,
    prune_at_start,
    samples,
    trainer,
    zeros,
)
from torch import nn, optim
from torch.utils.data import DataLoader

from regrow import ConfigError, Exponential, Linear, MagnitudePruning, OneShot, StateError, Table


def again(made, module, epochs=2, **kw):
    """Another fit of the same Trainer."""
    made.fit_loop.max_epochs = made.current_epoch + epochs
    made.fit(module, loader(), **kw)


def test_a_second_fit_keeps_the_sparsity():
    watch, pruning, module = Watch(), MagnitudePruning(0.8, schedule=OneShot(0.25)), Net(ADAM)
    made = trainer(watch, pruning)
    made.fit(module, loader())
    masks = dict(pruning.masks)
    for _ in range(2):
        again(made, module)
        assert all(torch.equal(masks[name], pruning.masks[name]) for name in masks)
    assert len(watch.seen) == 1
    assert made.global_step == 6 * BATCHES
    assert zeros(module) == round(0.8 * WEIGHTS)


def test_second_trainer_does_not_prune_again():
    watch, pruning, module = Watch(), MagnitudePruning(0.5, schedule=OneShot(0)), Net()
    trainer(pruning).fit(module, loader())
    trainer(watch, pruning).fit(module, loader())
    assert watch.seen == []
    assert zeros(module) == WEIGHTS // 2


def test_second_fit_continues_from_the_present_sparsity():
    """Linear from where the model is to the target, in the second fit's own time."""
    events = Events()
    pruning, module = MagnitudePruning(0.8, schedule=Linear(0, 0.5, "4it")), Net()
    made = trainer(events, pruning)
    made.fit(module, loader())
    events.seen.clear()
    pruning.unprune()
    made.fit_loop.max_epochs = 4
    pruning.prune_to(0.4)
    made.fit(module, loader())
    assert events.steps == [20, 24]
    assert events.seen[0][1] == pytest.approx((0.4 + 0.8) / 2, abs=1 / WEIGHTS)
    assert zeros(module) == round(0.8 * WEIGHTS)


def test_epochs_and_steps_count_from_the_second_fits_start():
    events, module = Events(), Net()
    pruning = MagnitudePruning(0.5, schedule=Table({"3it": 0.25, "1ep": 0.5}))
    made = trainer(events, pruning)
    made.fit(module, loader())
    pruning.unprune()
    again(made, module)
    assert events.steps == [3, 8, 19, 24]


def test_fit_after_an_interrupted_fit_continues():
    class Interrupt(Events):
        armed = True

        def on_train_batch_end(self, trainer, *_):
            if self.armed and trainer.global_step == 6:
                self.armed = False
                raise RuntimeError("stop")

    events, module = Interrupt(), Net()
    pruning = MagnitudePruning(0.8, schedule=Table({"3it": 0.4, "8it": 0.8}))
    with pytest.raises(RuntimeError, match="stop"):
        trainer(events, pruning).fit(module, loader())
    assert events.seen == [(3, round(round(0.4 * WEIGHTS) / WEIGHTS, 6))]
    for p in module.parameters():
        assert not p._backward_hooks
    trainer(events, pruning).fit(module, loader())
    assert zeros(module) == round(0.8 * WEIGHTS)


def test_no_hook_is_left_after_a_fit_or_an_exception():
    module, pruning = Net(), MagnitudePruning(0.5, schedule=OneShot(0))
    made = trainer(pruning)
    made.fit(module, loader())
    assert not any(o._optimizer_step_post_hooks for o in made.optimizers)
    optimizer = module.configure_optimizers()
    module.loss(next(iter(loader()))).backward()
    optimizer.step()
    assert zeros(module) < WEIGHTS // 2, "training by hand is no business of the callback"


@pytest.mark.parametrize("schedule", [Linear(0, "9it", "3it"), Exponential(0.5, "3it")])
@pytest.mark.parametrize("sparsity", mark_rest_slow([0.3, 0.75], [0.75]))
@pytest.mark.parametrize("own", [(0.5, 0.25), (0.9, 0.8), (0.3, 0.3)])
def test_targets_for_all_layers_hold_over_two_fits(own, sparsity, schedule):
    """The general sparsity applies to no layer and only sets the pace."""
    module, events = Net(), Events()
    layers = {"body.0": own[0], "body.2": own[1]}
    pruning = MagnitudePruning(sparsity, schedule=schedule, layers=layers)
    made = trainer(events, pruning)
    expected = [round(96 * own[0]), round(48 * own[1])]
    made.fit(module, loader())
    assert [int((layer.weight == 0).sum()) for layer in module.body[::2]] == expected
    count = len(events.seen)
    again(made, module)
    assert [int((layer.weight == 0).sum()) for layer in module.body[::2]] == expected
    assert len(events.seen) == count


def test_target_for_one_layer_holds_over_two_fits():
    module, events = Net(), Events()
    pruning = MagnitudePruning(0.75, schedule=Linear(0, "9it", "3it"), layers={"body.2": 0.25})
    made = trainer(events, pruning)
    for _ in range(2):
        again(made, module)
        assert [int((layer.weight == 0).sum()) for layer in module.body[::2]] == [72, 12]
    assert events.steps == [3, 6, 9]


def test_another_model_object_raises():
    pruning, module, other = MagnitudePruning(0.5, schedule=OneShot(0)), Net(), Net()
    trainer(pruning).fit(module, loader())
    with pytest.raises(StateError, match="another model object: call attach"):
        trainer(pruning).fit(other, loader())
    assert other.trained == 0
    pruning.attach(other)
    trainer(pruning).fit(other, loader())
    assert zeros(other) == WEIGHTS // 2


def test_a_target_below_the_present_sparsity_raises():
    module = Net()
    pruning = MagnitudePruning(0.5, schedule=OneShot(0))
    trainer(pruning).fit(module, loader())
    pruning.prune_to(0.75)
    trained = module.trained
    with pytest.raises(ConfigError, match=r"has sparsity 0\.75 already"):
        trainer(pruning).fit(module, loader())
    assert module.trained == trained


class Tunable(Net):
    def __init__(self):
        super().__init__()
        self.lr, self.batch_size = 0.01, 2

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def train_dataloader(self):
        return DataLoader(samples(), batch_size=self.batch_size)

    val_dataloader = train_dataloader


@pytest.mark.parametrize("pruned", [False, True])
def test_the_learning_rate_finder_triggers_no_event(pruned):
    events, pruning = Events(), MagnitudePruning(0.8, schedule=Table({"1it": 0.4, "9it": 0.8}))
    module = Tunable()
    made = trainer(events, pruning, max_epochs=1)
    if pruned:
        made.fit(module)
    seen, before = list(events.seen), copied(module)
    Tuner(made).lr_find(module, num_training=10, min_lr=1e-4)
    assert events.seen == seen
    after = copied(module)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert pruning.sparsity == (round(0.8 * WEIGHTS) / WEIGHTS if pruned else 0)
    made.fit_loop.max_epochs = 3
    made.fit(module)
    assert [sparsity for _, sparsity in events.seen] == [round(58 / 144, 6), round(115 / 144, 6)]
    assert zeros(module) == round(0.8 * WEIGHTS)


@pytest.mark.parametrize("first", [False, True])
def test_learning_rate_finder_callback_triggers_no_event(first):
    events, pruning = Events(), MagnitudePruning(0.8, schedule=Table({"1it": 0.4, "9it": 0.8}))
    finder = LearningRateFinder(num_training_steps=5, min_lr=1e-4)
    module = Tunable()
    made = trainer(events, *([finder, pruning] if first else [pruning, finder]))
    made.fit(module)
    assert len(events.seen) == 2
    assert zeros(module) == round(0.8 * WEIGHTS)
    pruning.unprune()
    made.fit_loop.max_epochs = 4
    made.fit(module)
    assert len(events.seen) == 4
    assert zeros(module) == round(0.8 * WEIGHTS)


@pytest.mark.parametrize("mode", ["power", "binsearch"])
@pytest.mark.parametrize("pruned", [False, True])
def test_the_batch_size_scaler_triggers_no_event(mode, pruned):
    events, pruning = Events(), MagnitudePruning(0.8, schedule=Table({"1it": 0.4, "3it": 0.8}))
    module = Tunable()
    made = trainer(events, pruning, max_epochs=1)
    if pruned:
        made.fit(module)
    seen, before = list(events.seen), copied(module)
    Tuner(made).scale_batch_size(module, mode=mode, max_trials=2, init_val=2)
    assert events.seen == seen
    after = copied(module)
    assert all(torch.equal(before[key], after[key]) for key in before)
    made.fit_loop.max_epochs = 3
    made.fit(module)
    assert len(events.seen) == 2
    assert zeros(module) == round(0.8 * WEIGHTS)


@pytest.mark.parametrize("layers", [{"body.2": 0.5}, {"body.0": 0.5, "body.2": 0.5}])
def test_proportional_layer_targets_below_one_weight_raise(layers):
    """Nothing would ever be pruned, though layers have targets of their own."""
    module = Net()
    with pytest.raises(ConfigError, match=r"sparsity=0\.001 is less than one weight"):
        trainer(MagnitudePruning(0.001, schedule=OneShot(0), layers=layers)).fit(module, loader())
    assert module.trained == 0


def test_parameters_replaced_between_fits_raise_with_their_names():
    pruning, module = prune_at_start(), Net()
    trainer(pruning).fit(module, loader())
    module.body[2] = nn.Linear(16, 3)
    with pytest.raises(StateError, match=r"body\.2\.weight of the model were replaced"):
        trainer(pruning).fit(module, loader())


@pytest.mark.parametrize(("rate", "rounds"), [(0.3, 3), (0.2, 5), (0.5, 4)])
@pytest.mark.parametrize("done", [1, 2])
def test_a_fit_after_some_rounds_has_only_the_others(rate, rounds, done):
    """The sparsity after a round is rounded to whole weights, here of 144 and of 96."""
    for include in (None, "body.0"):
        schedule = Exponential(rate, "3it", rounds)
        whole = MagnitudePruning(schedule=schedule, include=include)
        trainer(whole).fit(Net(), loader())
        module, pruning = Net(), MagnitudePruning(schedule=schedule, include=include)
        pruning.attach(module)
        pruning.prune_to(1 - (1 - rate) ** done)
        trainer(pruning).fit(module, loader())
        events = [entry["pruned"] for entry in pruning.history]
        assert events == [entry["pruned"] for entry in whole.history][done - 1 :]
