# SPDX-License-Identifier: MIT
"""Wrong settings of sparse training raise."""

from functools import partial

import pytest
from lightning.pytorch.callbacks import BackboneFinetuning
from tiny_fits import WEIGHTS, Net, fit, loader
from torch import optim

from regrow import AccuracyBudget, ConfigError, DynamicSparseTraining, Rewind, StateError

sparse = partial(DynamicSparseTraining, **{"sparsity": 0.8, "every": "3it", "end": "12it"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sparsity": 90}, "write 0.9"),
        ({"grow": "gradeint"}, "did you mean 'gradient'"),
        ({"grow": None}, "grow must be one of"),
        ({"drop": "size"}, "drop must be one of"),
        ({"distribution": "global"}, "distribution must be one of erk, uniform"),
        ({"granularity": "2:4", "sparsity": 0.5}, "only single weights can"),
        ({"init": "one"}, "init must be one of"),
        ({"init": "orthogonal"}, "whole filters"),
        ({"init": "removed"}, "keep_removed=True"),
        ({"drop_fraction": 0}, "drop_fraction must be in"),
        ({"drop_fraction": 1.5}, "drop_fraction must be in"),
        ({"every": 100}, "write '100ep' or '100it'"),
        ({"every": 0}, "every must be above 0"),
        ({"skip_update": True, "grow": "random"}, "leave skip_update out"),
        ({"on_change": "ignore"}, "on_change must be one of"),
        ({"seed": 0.5}, "seed must be a whole number"),
    ],
)
def test_invalid_settings_raise_at_construction(settings, words):
    with pytest.raises(ConfigError, match=words):
        sparse(**settings)


@pytest.mark.parametrize(
    ("settings", "kw", "words"),
    [
        ({"end": "99it"}, {}, "the fit ends before step 16"),
        ({"every": "12it"}, {}, "leaves no update"),
        ({"sparsity": 0.999}, {}, "cannot be pruned"),
        ({"include": "nothing"}, {}, "nothing"),
    ],
)
def test_unsupported_models_raise_before_the_first_step(settings, kw, words):
    module = Net()
    with pytest.raises((ConfigError, StateError), match=words):
        fit(module, sparse(**settings), **kw)
    assert module.trained == 0


def test_growth_by_gradient_needs_one_optimizer_for_all():
    def split(parameters):
        parameters = list(parameters)
        return [optim.SGD(parameters[:2], lr=0.1), optim.SGD(parameters[2:], lr=0.1)]

    class Two(Net):
        automatic_optimization = False

        def configure_optimizers(self):
            return split(self.parameters())

    with pytest.raises(ConfigError, match="no optimizer trains all"):
        fit(Two(), sparse())


@pytest.mark.parametrize("grow", ["gradient", "random", "none"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "beside", [partial(AccuracyBudget, "val/loss", 0.1, reference=1.0), partial(Rewind, "0it")]
)
def test_callbacks_that_need_rising_sparsity_raise(beside, first, grow):
    callbacks, module = [sparse(grow=grow), beside()], Net()
    name = type(callbacks[1]).__name__
    words = rf"{name} acts on events that prune further.*leave {name} out, or write MagnitudePrun"
    with pytest.raises(ConfigError, match=words):
        fit(module, *(reversed(callbacks) if first else callbacks), val=loader())
    assert module.trained == 0


def frozen(name="body.0"):
    module = Net()
    module.get_submodule(name).requires_grad_(False)
    return module


@pytest.mark.parametrize("grow", ["gradient", "momentum", "random"])
def test_growth_in_frozen_layers_raises_before_the_first_step(grow):
    module = frozen()
    words = r"body\.0\.weight is frozen.*write exclude=\['body\.0\.weight'\], or unfreeze it"
    with pytest.raises(ConfigError, match=words):
        fit(module, sparse(grow=grow))
    assert module.trained == 0
    fit(module, sparse(grow=grow, exclude=["body.0.weight"]))


def test_static_masks_take_frozen_layers():
    pruning = sparse(grow="none")
    fit(frozen(), pruning)
    assert pruning.sparsity == round(0.8 * WEIGHTS) / WEIGHTS


def test_a_frozen_layer_that_erk_leaves_dense_may_stay_frozen():
    pruning = sparse(sparsity=0.2)
    fit(frozen("body.2"), pruning)
    assert pruning.densities["body.2.weight"] == 1
    assert [entry["kind"] for entry in pruning.history][1:] == ["drop_and_grow"] * 3


def test_a_layer_that_is_unfrozen_before_the_first_update_grows():
    class Transfer(Net):
        @property
        def backbone(self):
            return self.body[0]

        def configure_optimizers(self):
            return self.make(self.body[2].parameters())

    def train(pruning):
        unfreezing = BackboneFinetuning(1, lambda epoch: 1.5, backbone_initial_lr=0.01)
        fit(Transfer(), unfreezing, pruning)

    for grow in ("gradient", "momentum"):
        pruning = sparse(grow=grow, every="10it", end="15it")
        train(pruning)
        assert [entry["step"] for entry in pruning.history] == [0, 10]
        with pytest.raises(ConfigError, match="no optimizer trains all of them"):
            train(sparse(grow=grow))


def test_a_layer_that_is_frozen_within_the_fit_raises_at_its_update():
    class Freezes(Net):
        def on_train_epoch_start(self):
            self.body[0].requires_grad_(self.trainer.current_epoch == 0)

    with pytest.raises(StateError, match=r"body\.0\.weight has no gradient.* frozen or unused"):
        fit(Freezes(), sparse())
