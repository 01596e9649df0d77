# SPDX-License-Identifier: MIT
"""Averages are masked at all times, compared with NumPy: pruned, returning and other weights."""

from functools import partial

import numpy as np
import pytest
import torch
from averaging_reference import (
    Mirror,
    arrays,
    averages,
    copy_of,
    exponential,
    mean,
    placed,
    same,
    zeros_of,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from tiny_fits import ADAM, SGD, WEIGHTS, Net, Watch, fit, loader

from regrow import Cubic, DynamicSparseTraining, MagnitudePruning, OneShot, Regrow, Table
from regrow.callbacks.core.base import Callback

WeightAveraging = averages().WeightAveraging
FAST = partial(torch.optim.SGD, lr=0.5, momentum=0.9)  # so that soft pruning changes its mind
ORDERS = pytest.mark.parametrize("order", ["before", "behind"])
GRADUAL = partial(MagnitudePruning, 0.8, schedule=Cubic("3it", "14it", "2it"))
SLOW = Table({"3it": 0.3, "6it": 0.31, "9it": 0.32, "12it": 0.33})
FALLS = Table({"3it": 0.5, "11it": 0.75})


class Unprune(Callback):
    """Un-prune at step 10; the next event prunes again."""

    def __init__(self, pruning):
        super().__init__()
        self.pruning = pruning

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 10:
            self.pruning.unprune()


def unpruned():
    pruning = MagnitudePruning(schedule=FALLS)
    return pruning, Unprune(pruning)


def two():
    return (
        MagnitudePruning(0.5, schedule=OneShot("2it"), include="body.0"),
        MagnitudePruning(0.6, schedule=OneShot("5it"), criterion="random"),
        Regrow(at="7it", fraction=0.5, names="body.0.weight", init="he"),
        Regrow(at="9it", fraction=0.5, by="gradient", names="body.2.weight", init="he"),
    )


WAYS = {
    "gradual": lambda: (GRADUAL(),),
    "by gradients": lambda: (GRADUAL(criterion="taylor"),),
    "soft": lambda: (MagnitudePruning(schedule=SLOW, soft=True),),
    "rigl": lambda: (DynamicSparseTraining(0.7, every="2it", end=1.0, init="he"),),
    "rigl from zero": lambda: (DynamicSparseTraining(0.7, every="2it", end=1.0),),
    "set": lambda: (DynamicSparseTraining(0.7, grow="random", every="2it", end=1.0, init="he"),),
    "regrow": lambda: (MagnitudePruning(schedule=FALLS), Regrow(at="7it", fraction=0.4)),
    "unprune": unpruned,
    "two": two,
}


@ORDERS
@pytest.mark.parametrize("way", WAYS)
def test_the_average_equals_a_numpy_reference(way, order, tmp_path):
    """After each batch and event, at validation, in checkpoints, and in the final model."""
    averaging, module = exponential(), Net(FAST)
    mirror = Mirror(averaging)
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    fit(
        module, *placed(order, averaging, *WAYS[way]()), mirror, saves,
        val=loader(2), val_check_interval=4, enable_checkpointing=True,
    )  # fmt: skip
    assert mirror.events > 1
    assert mirror.looks == 8
    assert mirror.saved > 4
    assert mirror.count == 16
    assert (mirror.back > 0) == (way not in ("gradual", "by gradients", "rigl from zero"))
    assert same(arrays(module), mirror.average)
    assert zeros_of(module) > WEIGHTS // 4


@ORDERS
@pytest.mark.parametrize(
    ("averaging", "rule", "updates"),
    [
        (WeightAveraging, mean, lambda step: True),
        (partial(exponential, update_every_n_steps=3), None, lambda step: step % 3 == 0),
        (partial(exponential, update_starting_at_step=9), None, lambda step: step >= 9),
        (partial(exponential, update_starting_at_step=99), None, lambda step: False),
        (partial(exponential, use_buffers=False), None, lambda step: True),
    ],
    ids=["mean", "every third", "late", "never", "no buffers"],
)
def test_all_averaging_settings_are_supported(averaging, rule, updates, order):
    """An average that begins late is of weights from before the events until then."""
    averaging, module = averaging(), Net(ADAM)
    mirror = Mirror(averaging, **({"rule": rule} if rule else {}), updates=updates)
    fit(module, *placed(order, averaging, *two()), mirror, val=loader(2))
    assert mirror.events == 5
    assert same(arrays(module), mirror.average)


@ORDERS
def test_final_model_is_zero_where_masks_said_so_during_the_fit(order, tmp_path):
    averaging, module, watch = exponential(), Net(SGD), Watch()
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    pruning = GRADUAL(keep_removed=False)
    fit(
        module, watch, *placed(order, averaging, pruning), saves,
        val=loader(2), enable_checkpointing=True, max_epochs=2,
    )  # fmt: skip
    watch.check(dict(module.named_parameters()), "in the final model")
    assert zeros_of(module) == round(0.8 * WEIGHTS)


class Shifted(WeightAveraging):
    """An average of two zeros that is not zero."""

    def __init__(self):
        super().__init__(avg_fn=lambda average, weight, count: (average + weight) / 2 + 0.01)


class Pruned(Callback):
    """Check at validation and in checkpoints."""

    def __init__(self, pruning):
        super().__init__()
        self.pruning, self.looks = pruning, 0

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.look(dict(pl_module.named_parameters()))

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.look(checkpoint["state_dict"])
        self.look(checkpoint["current_model_state"])

    def look(self, named):
        self.looks += 1
        for name, kept in self.pruning.masks.items():
            weight = named[name].detach()
            assert not weight[~kept].view(torch.int32).any()
            assert weight[kept].all()


@ORDERS
@pytest.mark.parametrize("last", ["checkpoint", "end"])
def test_custom_average_that_changes_zeros_is_masked(order, last, tmp_path):
    pruning, module = GRADUAL(), Net(ADAM)
    look, saves = Pruned(pruning), ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    more = (saves,) if last == "checkpoint" else ()
    made = fit(
        module, *placed(order, Shifted(), pruning), look, *more,
        val=loader(2) if more else None, enable_checkpointing=bool(more),
    )  # fmt: skip
    assert look.looks == (14 if more else 0)
    look.look(dict(module.named_parameters()))
    made.save_checkpoint(tmp_path / "end.ckpt")


class Kept(Callback):
    """What an event makes of the average where the mask did not change."""

    def __init__(self, averaging):
        super().__init__()
        self.averaging, self.before, self.seen, self.gaps = averaging, {}, 0, 0

    def before_prune_event(self, trainer, pl_module, pruner):
        self.masks = {n: m.numpy() for n, m in pruner.masks.items()}
        self.before = arrays(copy_of(self.averaging))

    def on_prune_event(self, trainer, pl_module, event):
        after, live = arrays(copy_of(self.averaging)), arrays(pl_module)
        for name, kept in event.pruner.masks.items():
            stay = self.masks[name] == kept.numpy()
            one, other = after[name][stay], self.before[name][stay]
            assert (one.view(np.int32) == other.view(np.int32)).all()
            self.gaps += int(((other == 0) & (live[name][stay] != 0)).sum())
        self.seen += 1


def test_a_kept_weight_whose_average_is_zero_stays_zero():
    """As of a layer that begins at zero, while the average waits: nothing has come back."""
    averaging, module = exponential(update_starting_at_step=12), Net(ADAM)
    torch.nn.init.zeros_(module.body[2].weight)
    kept = Kept(averaging)
    fit(module, averaging, DynamicSparseTraining(0.5, every="2it", end=1.0), kept)
    assert kept.seen > 4
    assert kept.gaps > 20


def test_a_skipped_step_of_soft_pruning_averages_no_dense_value(tmp_path):
    """The scaler skips the step, so dense values stand in the weights when the average looks."""

    class Overflows(Net):
        def loss(self, batch):
            return super().loss(batch) * (float("inf") if self.trained in (9, 14) else 1.0)

    pruning, module = GRADUAL(soft=True), Overflows(SGD)
    look = Pruned(pruning)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(
        module, exponential(), pruning, look, saves, val=loader(2), val_check_interval=1,
        plugins=MixedPrecision("16-mixed", "cpu", scaler), enable_checkpointing=True,
    )  # fmt: skip
    assert look.looks > 30
    look.look(dict(module.named_parameters()))
