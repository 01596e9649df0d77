# SPDX-License-Identifier: MIT
"""Errors of `LearnedMasks`: each message says what was given and what to write."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from tiny_fits import WEIGHTS, Net, equal, fit, loader, trainer, weights, zeros

from regrow import ChannelPruning, LearnedMasks, MagnitudePruning, StateError
from regrow.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "STR"}, "method must be one of cs, edge_popup, l0, str, got 'STR'"),
        ({"method": 0.9}, "method must be one of cs, edge_popup, l0, str, got 0.9"),
        ({"sparsity": 90}, "write 0.9 for 90 %"),
        ({"sparsity": 0}, "sparsity must be above 0"),
        ({"begin": 0.5, "end": 0.3}, "begin=0.5 must lie before end=0.3"),
        ({"end": 3}, "end=3 has no unit: write '3ep' or '3it'"),
        ({"ramp": 2}, "ramp must be in"),
        ({"score_lr": 0}, "score_lr must be a number above 0, got 0"),
        ({"score_optimizer": "adamw"}, "did you mean 'adam'"),
        ({"score_momentum": 1.5}, "score_momentum must be in"),
        ({"train_weights": "no"}, "train_weights must be True, False or null, got 'no'"),
        ({"keep_removed": "all"}, "keep_removed must be True"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"include": [1]}, "include must be layer patterns"),
    ],
)
def test_invalid_settings_raise(given, message):
    with pytest.raises(ConfigError, match=message):
        LearnedMasks(**given)


def refused(module, *callbacks, **kw):
    with pytest.raises(ConfigError) as error:
        trainer(*callbacks, **kw).fit(module, loader())
    assert module.trained == 0
    return str(error.value)


def test_frozen_weights_raise():
    module = Net()
    module.body[0].weight.requires_grad_(False)
    assert "body.0.weight trains under no optimizer" in refused(module, LearnedMasks())
    fit(module, LearnedMasks(exclude="body.0"))


@pytest.mark.parametrize("train_weights", [None, False])
def test_weights_that_stay_fixed_are_not_to_be_frozen(train_weights):
    module = Net()
    before = module.body[0].weight.clone()
    module.body[0].weight.requires_grad_(False)
    learned = LearnedMasks("edge_popup", 0.5, end=0.9, train_weights=train_weights)
    message = refused(module, learned)
    assert "unfreeze it: train_weights=False keeps its weights fixed" in message
    module.body[0].weight.requires_grad_(True)
    learned = LearnedMasks("edge_popup", 0.5, end="15it", train_weights=train_weights)

    class Fixed(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step < 15:
                live = module.body[0].weight != 0
                assert torch.equal(module.body[0].weight[live], before[live])

    fit(module, learned, Fixed())
    assert learned.sparsity == 0.5


def test_another_callback_on_the_same_weights_raises():
    message = refused(Net(), LearnedMasks(), MagnitudePruning(0.5))
    assert "MagnitudePruning also prunes body.0.weight, body.2.weight" in message


def test_another_callback_on_other_weights_works():
    module = Net()
    one, other = LearnedMasks(include="body.0"), MagnitudePruning(0.5, include="body.2")
    fit(module, other, one, max_epochs=4)
    assert int((module.body[0].weight == 0).sum()) == round(0.9 * 96)
    assert int((module.body[2].weight == 0).sum()) == 24


def test_channel_pruning_with_learned_masks_raises():
    module = Net()
    module.example_input_array = torch.zeros(1, 6)
    message = refused(module, LearnedMasks(), ChannelPruning(0.5, compact=None))
    assert "ChannelPruning" in message


def test_a_partly_pruned_model_raises():
    module, learned = Net(), LearnedMasks("str", 0.9)
    learned.attach(module)
    learned.pruner.set_masks(
        {n: m & (torch.arange(m.shape[1]) > 2) for n, m in learned.masks.items()}
    )
    assert "masks are learned from a dense one: call unprune()" in refused(module, learned)


def test_manual_pruning_raises():
    learned = LearnedMasks("str", 0.5)
    fit(Net(), learned)
    with pytest.raises(StateError, match=r"hardened once, at end=0.75, to sparsity=0.5"):
        learned.prune_to(0.9)


def test_an_end_after_the_fit_raises():
    assert "the fit ends before step 16" in refused(Net(), LearnedMasks(end="16it"))


def test_a_fused_optimizer_under_a_scaler_raises():
    class Fused(Net):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), fused=True)

    from lightning.pytorch.plugins import MixedPrecision

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    assert "write fused=False" in refused(Fused(), LearnedMasks(), plugins=plugin)
    fit(Fused(), LearnedMasks())


class Acts(Callback):
    """Calls a method of a callback at a step of the fit."""

    def __init__(self, act, step):
        self.act, self.step = act, step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            self.act()


@pytest.mark.parametrize("method", ["str", "cs", "l0", "edge_popup"])
@pytest.mark.parametrize("act", ["unprune", "regrow"])
def test_changes_by_hand_raise_while_masks_are_learned(method, act):
    learned = LearnedMasks(method, 0.5)
    change = learned.unprune if act == "unprune" else partial(learned.regrow, 0.5)
    with pytest.raises(StateError, match=r"while masks are being learned, until end=0.75"):
        fit(Net(), learned, Acts(change, 6))


class Ends(Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == 7


@pytest.mark.parametrize("method", ["str", "edge_popup"])
def test_a_fit_that_ends_while_masks_are_learned_keeps_the_dense_weights(method):
    module, learned = Net(), LearnedMasks(method, 0.5, train_weights=False)
    dense = {name: weight.clone() for name, weight in weights(module).items()}
    fit(module, learned, Ends())
    assert zeros(module)
    learned.unprune()
    assert equal(weights(module), dense)


@pytest.mark.parametrize("seed", [0, 3])
def test_another_fit_learns_from_the_dense_weights_or_those_that_were_loaded_since(seed):
    module, learned = Net(), LearnedMasks("edge_popup", 0.5)  # weights train once it has hardened
    fit(module, learned, Ends())
    if seed:
        module.load_state_dict(Net(seed=seed).state_dict())
    fit(module, learned)
    masks = learned.masks
    assert zeros(module) == masks.pruned == round(0.5 * WEIGHTS)
    learned.unprune()
    for name, dense in weights(Net(seed=seed)).items():
        assert torch.equal(weights(module)[name][~masks[name]], dense[~masks[name]])
