# SPDX-License-Identifier: MIT
"""MagnitudePruning with a threshold in whole fits, against NumPy at each event."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import ADAM, Net, copied, equal, fit, loader, samples, weights, zeros
from torch import nn

from regrow import AccuracyBudget, ConfigError, Exponential, MagnitudePruning, StateError, Table
from regrow.callbacks.core.base import Callback
from regrow.callbacks.magnitude_pruning import ThresholdPruner
from regrow.data.tensor_loader import BatchLoader
from regrow.pruning.config import PruningConfig

LINEAR = {"schedule": "linear", "begin": "2it", "end": "12it", "every": "5it"}


class AtEvents(Callback):
    """Copies the weights before and after each event."""

    def __init__(self):
        super().__init__()
        self.before, self.after = [], []

    def before_prune_event(self, trainer, pl_module, pruner):
        self.before.append({n: w.clone() for n, w in weights(pl_module).items()})

    def on_prune_event(self, trainer, pl_module, event):
        self.after.append({n: w.clone() for n, w in weights(pl_module).items()})


def fitted(pruning, *callbacks, **kw):
    module, events = Net(ADAM), AtEvents()
    fit(module, pruning, events, *callbacks, **kw)
    return module, events


def test_the_threshold_rises_by_the_schedule():
    pruning = MagnitudePruning(threshold=0.2, **LINEAR)
    module, events = fitted(pruning)
    assert [entry["step"] for entry in pruning.history] == [7, 12]
    assert [entry["threshold"] for entry in pruning.history] == pytest.approx([0.1, 0.2])
    for t, before, after in zip([0.1, 0.2], events.before, events.after, strict=True):
        for name, values in before.items():
            expected = np.where(np.abs(values.numpy()) < np.float32(t), 0, values.numpy())
            assert np.array_equal(after[name].numpy(), expected)
    assert 0 < zeros(module) == pruning.masks.pruned
    assert pruning.schedule_done
    assert pruning.sparsity == pruning.target == zeros(module) / 144


def test_a_table_lists_thresholds():
    pruning = MagnitudePruning(threshold=0.2, schedule=Table({"3it": 0.05, "1ep": 0.2}))
    fitted(pruning)
    assert [(e["step"], e["threshold"]) for e in pruning.history] == [(3, 0.05), (8, 0.2)]


def test_dense_phases_and_soft_masks():
    settings = {"schedule": "cyclic", "begin": "2it", "end": "10it", "every": "4it"}
    pruning = MagnitudePruning(threshold=0.2, soft=True, **settings)
    fitted(pruning)
    assert [entry["kind"] for entry in pruning.history] == ["prune", "dense", "prune"]


@pytest.mark.parametrize("step", [3, 7, 9, 12, 14])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, step):
    def run(*callbacks, **kw):
        pruning = MagnitudePruning(threshold=0.2, **LINEAR)
        data = BatchLoader(*samples().tensors, batch_size=4)
        module, _ = fitted(pruning, *callbacks, data=data, **kw)
        return copied(module), pruning.history

    saves = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    whole = run(saves, enable_checkpointing=True)
    assert equal(run(ckpt_path=tmp_path / f"step={step}.ckpt"), whole)


def test_resume_with_another_threshold_or_a_sparsity_raises(tmp_path):
    saves = ModelCheckpoint(tmp_path, filename="a", every_n_train_steps=9, save_top_k=1)
    fitted(MagnitudePruning(threshold=0.2, **LINEAR), saves, enable_checkpointing=True)
    for other in ({"threshold": 0.3}, {"sparsity": 0.2}):
        with pytest.raises(StateError, match="threshold"):
            fitted(MagnitudePruning(**other, **LINEAR), ckpt_path=tmp_path / "a.ckpt")


def test_a_second_fit_goes_on_from_the_threshold():
    pruning, module = MagnitudePruning(threshold=0.2, **LINEAR), Net()
    fit(module, pruning)
    count = len(pruning.history)
    fit(module, pruning)
    assert len(pruning.history) == count
    assert zeros(module) == pruning.masks.pruned


def test_weights_restored_by_hand_are_compared_again():
    pruning, module = MagnitudePruning(threshold=0.2, **LINEAR), Net()
    fit(module, pruning)
    pruning.unprune()
    fit(module, pruning)
    assert [entry["kind"] for entry in pruning.history] == ["prune"] * 2 + ["unprune"] + [
        "prune"
    ] * 2


def test_rewinding_each_round():
    pruning = MagnitudePruning(threshold=0.2, rewind="1it", **LINEAR)
    module, _ = fitted(pruning)
    assert len(pruning.history) == 2
    assert zeros(module) == pruning.masks.pruned > 0


def test_a_relative_threshold():
    pruning = MagnitudePruning(
        threshold=0.8, criterion="relative_magnitude", schedule="one_shot", begin="4it"
    )
    _, events = fitted(pruning)
    [before] = events.before
    for name, values in before.items():
        expected = np.abs(values.numpy()) >= 0.8 * np.std(values.numpy())
        assert np.array_equal(events.after[0][name].numpy() != 0, expected)


def test_pruning_by_hand():
    pruning, module = MagnitudePruning(threshold=0.2), Net()
    pruning.attach(module)
    before = {name: values.clone() for name, values in weights(module).items()}
    entry = pruning.prune_below(0.1)
    assert entry["pruned"] == sum(int((w.abs() < 0.1).sum()) for w in before.values())
    assert pruning.prune_to(0.9)["pruned"] == round(0.9 * 144)


def test_fit_without_steps_for_the_last_event_causes_a_warning():
    pruning = MagnitudePruning(threshold=0.2, **LINEAR)
    with pytest.warns(UserWarning, match=r"threshold 0\.2"):
        fit(Net(), pruning, Stops(), data=loader())


class Stops(Callback):
    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step >= 8


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sparsity": 0.5}, r"sparsity=0\.5 and threshold=0\.1"),
        ({"threshold": 0}, "threshold must be a number above 0"),
        ({"threshold": "0.1"}, "text '0.1'"),
        ({"distribution": "uniform"}, "threshold.*distribution"),
        ({"granularity": "2:4"}, "threshold.*granularity"),
        ({"layers": {"*": 0.5}}, "threshold.*layers"),
        ({"schedule": "exponential"}, "threshold.*schedule='linear'"),
        ({"schedule": Table({"1ep": 0.2})}, r"ends at threshold 0\.2, but threshold=0\.1"),
        ({"schedule": Exponential(0.5, "1ep")}, "threshold.*schedule='linear'"),
    ],
)
def test_settings_that_exclude_each_other_raise(settings, match):
    with pytest.raises(ConfigError, match=match):
        MagnitudePruning(**{"threshold": 0.1, **settings})


def test_neither_sparsity_nor_threshold_raises():
    with pytest.raises(ConfigError, match="sparsity"):
        MagnitudePruning(None)


def test_accuracy_budget_beside_a_threshold_raises():
    with pytest.raises(ConfigError, match=r"AccuracyBudget.*threshold"):
        fit(Net(), MagnitudePruning(threshold=0.1), AccuracyBudget("val/loss", 0.1), val=loader())


def test_zeros_have_positive_sign_and_stay():
    module, _ = fitted(MagnitudePruning(threshold=0.2, **LINEAR))
    assert zeros(module) == sum(int((w == 0).sum()) for w in weights(module).values())
    assert not any(torch.signbit(w[w == 0]).any() for w in weights(module).values())


def test_progress_is_the_last_threshold():
    pruner = ThresholdPruner(nn.Linear(20, 20), PruningConfig(threshold=0.2), keep_removed=True)
    assert pruner.progress_towards(0.2) == 0
    pruner.prune_below(0.1)
    assert pruner.progress_towards(0.2) == 0.1
    assert pruner.progress_towards(0.05) == 0.05, "all below it are pruned"
    pruner.regrow(0.5)
    assert pruner.progress_towards(0.2) == 0
