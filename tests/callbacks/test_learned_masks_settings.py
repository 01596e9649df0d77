# SPDX-License-Identifier: MIT
"""Learned masks with unusual weights, or resumed with other settings."""

import pytest
import torch
from lightning.pytorch import Callback
from tiny_fits import Net, fit, zeros

from regrow import LearnedMasks, MagnitudePruning
from regrow.utils.errors import ConfigError, StateError


class Stop(Callback):
    """Saves at a step and ends the fit there."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_weights_above_every_threshold_end_at_the_target(scale):
    """No soft threshold is above 1: scores stop at their ceiling, hardening does the rest."""
    module = Net()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    learned, seen = LearnedMasks("str", 0.8), []

    class Look(Callback):
        def on_train_batch_end(self, *_):
            if learned.changes_between_events:
                seen.extend(
                    float(s) for s in learned.pruner.learner.state_dict()["scores"].values()
                )

    fit(module, learned, Look(), max_epochs=6)
    assert max(seen) < 5.0
    assert zeros(module) == round(0.8 * 144)


@pytest.mark.parametrize("method", ["str", "cs", "l0"])
def test_layer_of_zeros_trains_to_the_target(method):
    module = Net()
    torch.nn.init.zeros_(module.body[2].weight)
    learned = LearnedMasks(method, 0.5)
    fit(module, learned, max_epochs=6)
    assert zeros(module) == 72
    assert torch.isfinite(module.body[0].weight).all()


def begun(tmp_path, **kw):
    path = tmp_path / "begun.ckpt"
    fit(Net(), LearnedMasks("str", 0.5, **kw), Stop(4, path), max_epochs=2)
    return path


def test_changed_begin_is_stretched_kept_or_raises(tmp_path):
    path = begun(tmp_path, begin=0.5, end=0.75)

    def resumed(on_change, **kw):
        learned = LearnedMasks("str", 0.5, on_change=on_change, **{"begin": 0.5, "end": 0.75} | kw)
        fit(Net(), learned, ckpt_path=path, max_epochs=6)
        return learned

    first = resumed("stretch").strategy.first
    assert (first, resumed("keep").strategy.first) == (24, 8)  # half of 48 steps, of 16
    with pytest.raises(ConfigError, match="events still to come"):
        resumed("refuse")
    learned = LearnedMasks("str", 0.5, begin="2it", end=0.75)
    with pytest.raises(ConfigError, match=r"from step 8 on, this fit from step 2"):
        fit(Net(), learned, ckpt_path=path, max_epochs=2)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"score_optimizer": "sgd"}, "score_optimizer=adam, 0.9, now sgd, 0.9"),
        ({"score_lr": 0.5}, "score_lr=None, now 0.5"),
        ({"train_weights": False}, "train_weights=None, now False"),
        ({"ramp": 0.2}, "ramp=0.7, now 0.2"),
        ({"seed": 3}, "seed=0, now 3"),
    ],
)
def test_resuming_with_other_settings_raises(changed, named, tmp_path):
    path = begun(tmp_path, begin=0.5, end=0.75)
    learned = LearnedMasks("str", 0.5, begin=0.5, end=0.75, **changed)
    with pytest.raises(StateError, match=named):
        fit(Net(), learned, ckpt_path=path, max_epochs=2)


def test_resuming_with_another_seed_raises(tmp_path):
    path, pruning = tmp_path / "a.ckpt", {"criterion": "random", "begin": "2it", "end": "12it"}
    fit(Net(), MagnitudePruning(0.5, **pruning), Stop(4, path), max_epochs=2)
    with pytest.raises(StateError, match="seed=0, now 1"):
        fit(Net(), MagnitudePruning(0.5, seed=1, **pruning), ckpt_path=path, max_epochs=2)
