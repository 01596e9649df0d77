# SPDX-License-Identifier: MIT
"""Removed values are restored exactly: in a fit, between fits, from a checkpoint."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import (
    ADAM,
    BATCHES,
    SGD,
    WEIGHTS,
    Events,
    Net,
    equal,
    fit,
    loader,
    prune_at_start,
    trainer,
    weights,
    zeros,
)

from regrow import (
    ConfigError,
    Exponential,
    MagnitudePruning,
    OneShot,
    SparseModelCheckpoint,
    StateError,
    Table,
)

LEVELS = Table({"3it": 0.4, "9it": 0.8})


class Snapshots(Events):
    """The weights at each batch's beginning, before anything is pruned in it."""

    def __init__(self):
        super().__init__()
        self.at = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.at[trainer.global_step] = {n: p.clone() for n, p in weights(pl_module).items()}


class At(Callback):
    """Does something at the beginning of a batch."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.what()


def removed(pruning, snapshots, now):
    """What each weight must be after un-pruning: as it is, or as it was when it was pruned."""
    expected = {name: p.clone() for name, p in now.items()}
    dead = {name: p == 0 for name, p in now.items()}
    for step in [entry["step"] for entry in pruning.history]:
        for name, before in snapshots.at[step].items():
            alive = dead[name] & (before != 0)
            expected[name][alive] = before[alive]
    return expected


@pytest.mark.parametrize("make", [SGD, ADAM])
def test_unprune_between_fits_is_bit_exact(make):
    module, snapshots, pruning = Net(make), Snapshots(), MagnitudePruning(0.8, schedule=LEVELS)
    fit(module, snapshots, pruning)
    expected = removed(pruning, snapshots, weights(module))
    entry = pruning.unprune()
    assert equal(expected, weights(module))
    assert pruning.sparsity == 0
    assert (entry["kind"], entry["before"]) == ("unprune", round(0.8 * WEIGHTS) / WEIGHTS)
    assert pruning.masks.pruned == 0


def test_unpruned_weights_train_within_a_fit():
    module, snapshots, seen = Net(ADAM), Snapshots(), {}
    pruning = MagnitudePruning(0.8, schedule=LEVELS)

    def back():
        seen["expected"] = removed(pruning, snapshots, weights(module))
        pruning.unprune()
        seen["found"] = {name: p.clone() for name, p in weights(module).items()}

    fit(module, snapshots, pruning, At(12, back))
    assert equal(seen["expected"], seen["found"])
    assert snapshots.steps == [3, 9, 12]
    assert pruning.history[-1]["step"] == 12
    for name, p in weights(module).items():
        assert (p != seen["found"][name]).all(), "all weights learn again"


def test_unprune_restores_one_layer():
    module, snapshots, pruning = Net(), Snapshots(), MagnitudePruning(0.8, schedule=LEVELS)
    fit(module, snapshots, pruning)
    expected = removed(pruning, snapshots, weights(module))
    first = module.body[0].weight.detach().clone()
    pruning.unprune("body.2")
    assert torch.equal(module.body[2].weight, expected["body.2.weight"])
    assert torch.equal(module.body[0].weight, first)
    assert pruning.masks["body.2.weight"].all()
    pruning.unprune(["body.0.weight"])
    assert torch.equal(module.body[0].weight, expected["body.0.weight"])
    with pytest.raises(ConfigError, match=r"nearest are .*body\.0"):
        pruning.unprune("body.7")


def test_remaining_events_prune_again():
    module, events = Net(), Events()
    pruning = MagnitudePruning(0.8, schedule=LEVELS)
    fit(module, events, pruning, At(5, lambda: pruning.unprune()))
    assert events.seen[1] == (5, 0.0)
    assert zeros(module) == round(0.8 * WEIGHTS)


def test_manual_pruning_within_a_fit_keeps_its_masks():
    module, events = Net(ADAM), Events()
    pruning = MagnitudePruning(0.8, schedule=LEVELS)
    fit(module, events, pruning, At(5, lambda: pruning.prune_to(0.6)))
    assert [round(s, 2) for _, s in events.seen] == [0.4, 0.6, 0.8]
    module, events = Net(ADAM), Events()
    pruning = MagnitudePruning(0.8, schedule=LEVELS)
    fit(module, events, pruning, At(5, lambda: pruning.prune_to(0.9)))
    assert events.steps[:2] == [3, 5]
    assert zeros(module) == round(0.9 * WEIGHTS), "what is pruned stays pruned"
    assert pruning.schedule_done


def test_prune_to_zero_restores_all_weights():
    module, pruning = Net(), MagnitudePruning(0.8, schedule=LEVELS)
    fit(module, pruning)
    before = {name: p.clone() for name, p in weights(module).items()}
    pruning.prune_to(0)
    assert equal(before, weights(module))
    assert pruning.masks.pruned == 0
    pruning.unprune()
    assert equal(before, weights(module)), "what came back is no longer kept"


def test_unprune_without_removed_values_raises():
    module, pruning = Net(), MagnitudePruning(0.8, schedule=LEVELS, keep_removed=False)
    fit(module, pruning)
    with pytest.raises(StateError, match="write keep_removed=True"):
        pruning.unprune()
    assert zeros(module) == round(0.8 * WEIGHTS)


def test_unprune_before_a_model_raises():
    for ask in (lambda p: p.masks, lambda p: p.unprune(), lambda p: p.prune_to(0.5)):
        with pytest.raises(StateError, match=r"call trainer\.fit, or attach"):
            ask(MagnitudePruning(0.8))
    pruning = MagnitudePruning(0.8)
    assert (pruning.sparsity, pruning.target, pruning.history) == (0.0, 0.0, [])


def end_of_a_fit(path, **kw):
    module, snapshots = Net(ADAM), Snapshots()
    pruning = MagnitudePruning(0.8, schedule=LEVELS, **kw)
    fit(module, snapshots, pruning).save_checkpoint(path)
    return module, removed(pruning, snapshots, weights(module)), pruning


def test_unprune_after_attaching_a_checkpoint(tmp_path):
    module, expected, pruning = end_of_a_fit(tmp_path / "end.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "end.ckpt")
    other = MagnitudePruning(0.8, schedule=OneShot(0))
    other.attach(loaded, tmp_path / "end.ckpt")
    assert equal(weights(loaded), weights(module))
    assert equal(dict(other.masks), dict(pruning.masks))
    assert other.sparsity == pruning.sparsity
    assert other.history == pruning.history
    other.unprune()
    assert equal(weights(loaded), expected)


def test_attached_model_can_be_trained(tmp_path):
    end_of_a_fit(tmp_path / "end.ckpt")
    loaded, other = Net.load_from_checkpoint(tmp_path / "end.ckpt"), MagnitudePruning(0.8)
    other.attach(loaded, tmp_path / "end.ckpt")
    masks, events = dict(other.masks), Events()
    fit(loaded, events, other, max_epochs=20)
    assert events.seen == []
    assert equal(dict(other.masks), masks)
    assert zeros(loaded) == round(0.8 * WEIGHTS)


def test_attached_model_can_be_pruned_further(tmp_path):
    end_of_a_fit(tmp_path / "end.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "end.ckpt")
    other, events = MagnitudePruning(0.9, schedule=OneShot("2it")), Events()
    other.attach(loaded, tmp_path / "end.ckpt")
    places = {name: p == 0 for name, p in weights(loaded).items()}
    fit(loaded, events, other)
    assert events.steps == [2]
    assert zeros(loaded) == round(0.9 * WEIGHTS)
    assert all((p[places[name]] == 0).all() for name, p in weights(loaded).items())


def test_attach_moves_masks_to_another_model_object():
    module, pruning = Net(ADAM), MagnitudePruning(0.8, schedule=LEVELS)
    fit(module, pruning)
    masks, copy = dict(pruning.masks), Net(ADAM)
    copy.load_state_dict(module.state_dict())
    pruning.attach(copy)
    assert equal(dict(pruning.masks), masks)
    expected = weights(module)
    pruning.unprune()
    assert (weights(copy)["body.0.weight"] != 0).all()
    assert equal(weights(module), expected), "the first object is left alone"


def test_attach_raises_for_masks_that_do_not_match(tmp_path):
    end_of_a_fit(tmp_path / "end.ckpt")
    _, _, pruning = end_of_a_fit(tmp_path / "again.ckpt")

    class Wide(Net):
        def __init__(self):
            super().__init__(ADAM)
            self.body = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3))

    for callback in (MagnitudePruning(0.8), pruning):
        with pytest.raises(StateError, match=r"body\.1\.weight has no mask"):
            callback.attach(Wide(), tmp_path / "end.ckpt")
    assert pruning.sparsity > 0, "the model it had is still its own"
    fit(Net(ADAM)).save_checkpoint(tmp_path / "dense.ckpt")
    with pytest.raises(StateError, match="has no masks"):
        MagnitudePruning(0.8).attach(Net(ADAM), tmp_path / "dense.ckpt")


def test_a_failing_listener_does_not_leave_half_a_change():
    """Masks, weights and history agree whatever another callback does on an event."""

    class Fails(Events):
        def on_prune_event(self, *_):
            raise RuntimeError("mine")

    module, pruning = Net(), MagnitudePruning(0.8, schedule=LEVELS)
    with pytest.raises(RuntimeError, match="mine"):
        fit(module, Fails(), pruning)
    assert zeros(module) == pruning.masks.pruned == round(0.4 * WEIGHTS)
    assert len(pruning.history) == 1
    pruning.unprune()
    assert zeros(module) == 0


def test_removed_values_match_the_loaded_masks(tmp_path):
    """Resumed between two events, un-pruned at the end: equal to the uninterrupted run."""
    found = []
    for cut in (None, tmp_path / "epoch=0.ckpt"):
        module, pruning = Net(ADAM), MagnitudePruning(0.8, schedule=LEVELS)
        saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit(module, pruning, saves, ckpt_path=cut, enable_checkpointing=True)
        assert [entry["step"] for entry in pruning.history] == [3, 9]
        pruning.unprune()
        found.append({name: p.clone() for name, p in weights(module).items()})
    assert equal(*found)


def test_layer_targets_apply_after_a_manual_change():
    class Hand(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 5:
                pruning.prune_to(0.3)

    pruning = MagnitudePruning(0.8, schedule="linear", every="1it", layers={"body.2": 0.5})
    trainer(pruning, Hand(), max_epochs=4).fit(Net(), loader())
    densities = pruning.pruner.densities
    assert densities["body.2.weight"] == 0.5
    assert densities["body.0.weight"] == pytest.approx(0.2, abs=0.01)


def test_unprune_restores_all_weights_with_layer_targets():
    pruning = prune_at_start(0.5, layers={"body.2": 0.25})
    trainer(pruning).fit(Net(), loader())
    pruning.prune_to(0)
    assert pruning.sparsity == 0


@pytest.mark.parametrize("schedule", ["cubic", Exponential(0.5, "3it"), OneShot("2it")])
@pytest.mark.parametrize("layers", [{"body.2": 0.5}, {"body.2": 0.5, "body.0": 0.8}])
def test_a_layer_with_a_target_of_its_own_that_came_back_is_pruned_again(layers, schedule):
    module, pruning = Net(), MagnitudePruning(0.8, schedule=schedule, layers=layers)
    fit(module, pruning, max_epochs=4)
    wanted = dict(pruning.densities)
    assert wanted["body.2.weight"] == 0.5
    assert pruning.at_target
    pruning.unprune("body.2")
    assert not pruning.at_target
    assert not pruning.schedule_done
    first = len(pruning.history)
    fit(module, pruning, max_epochs=4)
    assert pruning.densities == wanted
    assert pruning.at_target
    after = [entry["after"] for entry in pruning.history[first:]]
    assert after
    assert after == sorted(after), "the other layer stays pruned meanwhile"


def test_one_weight_of_a_layer_with_a_target_of_its_own_that_came_back_is_noticed():
    """Of 48 weights 0.27 are 12.96, and 0.26 are 12.48, rounded to whole ones."""
    for own, count in ((0.27, 13), (0.26, 12)):
        module, pruning = Net(), prune_at_start(0.8, layers={"body.2": own})
        fit(module, pruning)
        assert int((module.body[2].weight == 0).sum()) == count
        assert pruning.at_target
        pruning.regrow(count=1, names="body.2")
        assert not pruning.at_target
        pruning.prune_to(0.8)
        assert pruning.at_target


def test_a_layer_with_a_target_of_its_own_that_came_back_within_a_fit_is_not_ranked(tmp_path):
    class Hand(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == BATCHES:
                pruning.unprune("body.2")

    pruning = prune_at_start(0.8, layers={"body.2": 0.5})
    keeper = SparseModelCheckpoint(tmp_path, "{step}", monitor="val/loss", save_top_k=-1)
    fit(Net(), Hand(), pruning, keeper, val=loader(), enable_checkpointing=True)
    assert sorted(path.name for path in tmp_path.glob("step*.ckpt")) == [f"step={BATCHES}.ckpt"]


HOOKS = {
    "on_train_batch_start": True,
    "on_train_batch_end": True,
    "on_train_epoch_end": True,
    "on_validation_end": True,
    "on_before_zero_grad": False,  # between the forward and the backward pass
    "on_before_backward": False,
}


@pytest.mark.parametrize("act", ["regrow", "unprune"])
@pytest.mark.parametrize("hook", HOOKS)
def test_weights_come_back_in_the_hooks_that_the_guide_names(hook, act):
    class Hand(Callback):
        done = False

        def act(self, trainer, *_):
            if trainer.global_step >= 5 and not self.done:
                self.done = True
                pruning.regrow(0.5) if act == "regrow" else pruning.unprune()

    pruning, hand = prune_at_start(0.5), Hand()
    setattr(hand, hook, hand.act)
    if HOOKS[hook]:
        fit(Net(), pruning, hand, val=loader())
        assert pruning.sparsity == (0.25 if act == "regrow" else 0)
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            fit(Net(), pruning, hand)
    assert hand.done
