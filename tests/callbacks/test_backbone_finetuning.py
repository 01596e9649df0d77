# SPDX-License-Identifier: MIT
"""BackboneFinetuning: a backbone that is frozen first and added to the optimizer later."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from tiny_fits import (
    ADAM,
    BATCHES,
    WEIGHTS,
    Net,
    Watch,
    copied,
    equal,
    fit,
    magnitude_masks,
    samples,
    weights,
    zeros,
)
from torch import optim

from regrow import AccuracyBudget, ConfigError, MagnitudePruning, OneShot, Rewind, StateError, Table
from regrow.data.tensor_loader import BatchLoader

LEVELS = Table({"3it": 0.4, "11it": 0.6, "18it": 0.8})


class Transfer(Net):
    """Weights named as in `Net`; the optimizer begins with the head alone."""

    def __init__(self, make=ADAM):
        super().__init__()
        self.make = make

    @property
    def backbone(self):
        return self.body[0]

    def configure_optimizers(self):
        return self.make(self.body[2].parameters())


def finetuning():
    return BackboneFinetuning(1, lambda epoch: 1.5, backbone_initial_lr=0.01)


def data():
    return BatchLoader(*samples().tensors, batch_size=4)


def run(*callbacks, module=None, **kw):
    module = module or Transfer()
    made = fit(module, *callbacks, data=data(), max_epochs=3, **kw)
    return module, made


@pytest.mark.parametrize(
    "make",
    [partial(optim.Adam, lr=0.01), partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)],
)
@pytest.mark.parametrize("first", [True, False])
def test_pruned_weights_stay_zero_before_and_after_unfreezing(first, make):
    class Frozen(Watch):
        def on_train_batch_end(self, trainer, pl_module, *_):
            super().on_train_batch_end(trainer, pl_module)
            weight = weights(pl_module)["body.0.weight"]
            if trainer.global_step <= BATCHES:
                live = weight != 0
                assert torch.equal(weight[live], self.start[live])

    watch, pruning, module = Frozen(), MagnitudePruning(0.8, schedule=LEVELS), Transfer(make)
    watch.start = module.body[0].weight.detach().clone()
    callbacks = (finetuning(), pruning) if first else (pruning, finetuning())
    _, made = run(watch, *callbacks, module=module)
    assert watch.steps == [3, 11, 18]
    assert zeros(module) == round(0.8 * WEIGHTS)
    assert len(made.optimizers[0].param_groups) == 2
    live = module.body[0].weight != 0
    assert not torch.equal(module.body[0].weight[live], watch.start[live]), "it trains at last"


@pytest.mark.parametrize("keep", [True, "moments"])
def test_removed_weights_are_restored_with_their_moments(keep):
    class Removed(Watch):
        def on_prune_event(self, trainer, pl_module, event):
            gone = ~event.pruner.masks["body.0.weight"]
            was = self.before["body.0.weight"]
            self.values = torch.where(gone & (was != 0), was, self.values)

    removed, pruning = Removed(), MagnitudePruning(0.8, schedule=LEVELS, keep_removed=keep)
    removed.values, module = torch.zeros(16, 6), Transfer()
    run(removed, finetuning(), pruning, module=module)
    gone = ~pruning.masks["body.0.weight"]
    pruning.unprune()
    assert torch.equal(module.body[0].weight.detach()[gone], removed.values[gone])


def test_gradients_of_an_unfrozen_backbone_are_ranked():
    """Taylor scores of the step at hand: |g w|."""

    class Seen(Watch):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.dense = {
                name: (p.detach() * p.grad).abs()
                for name, p in pl_module.named_parameters()
                if p.grad is not None and p.dim() > 1
            }

        def on_prune_event(self, trainer, pl_module, event):
            self.kept = magnitude_masks(self.dense, round(event.after * WEIGHTS))
            self.seen.append(event.step)

    for order in (0, 1):
        seen, module = Seen(), Transfer()
        pruning = MagnitudePruning(0.5, schedule=OneShot("10it"), criterion="taylor")
        pair = [finetuning(), pruning]
        run(seen, *(pair if order else pair[::-1]), module=module)
        assert seen.seen == [10]
        assert equal(dict(pruning.masks), seen.kept)


@pytest.mark.parametrize("criterion", ["taylor", "movement"])
def test_missing_gradients_of_a_frozen_backbone_raise_with_the_name(criterion):
    pruning = MagnitudePruning(0.5, schedule=OneShot("3it"), criterion=criterion)
    with pytest.raises((ConfigError, StateError), match="frozen"):
        run(finetuning(), pruning)


def test_only_the_head_is_ranked_while_the_backbone_is_frozen():
    module = Transfer()
    pruning = MagnitudePruning(0.5, schedule=OneShot("3it"), criterion="taylor", include="body.2")
    run(finetuning(), pruning, module=module)
    assert int((module.body[2].weight == 0).sum()) == 24


class Mended(BackboneFinetuning):
    """Lightning's callback leaves the backbone frozen after a resume; this one does not."""

    def on_fit_start(self, trainer, pl_module):
        super().on_fit_start(trainer, pl_module)
        for group in trainer.optimizers[0].param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("first", [True, False])
def test_resumed_run_is_the_uninterrupted_run(first, criterion, tmp_path):
    levels = LEVELS if criterion == "magnitude" else Table({"10it": 0.4, "18it": 0.8})

    def go(*callbacks, **kw):
        pruning = MagnitudePruning(0.8, schedule=levels, criterion=criterion)
        finetuning = Mended(1, lambda epoch: 1.5, backbone_initial_lr=0.01)
        pair = (finetuning, pruning) if first else (pruning, finetuning)
        module, made = run(*pair, *callbacks, **kw)
        states = [made.optimizers[0].state_dict()["state"], pruning.history]
        return copied(module), dict(pruning.masks), states

    saves = [
        ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(tmp_path, filename="end{epoch}", save_top_k=-1),
    ]
    whole = go(*saves, enable_checkpointing=True)
    for cut in ("step=2", "step=6", "endepoch=0", "step=10", "endepoch=1", "step=20"):
        assert equal(whole, go(ckpt_path=tmp_path / f"{cut}.ckpt")), cut


def test_masks_hold_if_the_backbone_stays_frozen_after_a_resume(tmp_path):
    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run(finetuning(), MagnitudePruning(0.8, schedule=LEVELS), saves, enable_checkpointing=True)
    module, pruning = Transfer(), MagnitudePruning(0.8, schedule=LEVELS)
    run(finetuning(), pruning, module=module, ckpt_path=tmp_path / "step=12.ckpt")
    assert [entry["step"] for entry in pruning.history] == [3, 11, 18]
    assert zeros(module) == pruning.masks.pruned == round(0.8 * WEIGHTS)


class Rates(Watch):
    """Record the learning rates of all groups at each step."""

    def __init__(self):
        super().__init__()
        self.rates = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        super().on_train_batch_end(trainer, pl_module)
        groups = trainer.optimizers[0].param_groups
        self.rates[trainer.global_step] = [group["lr"] for group in groups]


@pytest.mark.parametrize("what", ["weights", "lr", ["weights", "lr", "optimizer"]])
def test_rewinding_to_before_unfreezing_restores_the_state(what):
    """Its group was not there then: it keeps its rate, and the others go back to theirs."""
    watch, module = Rates(), Transfer()
    start = module.body[0].weight.detach().clone()
    pruning = MagnitudePruning(0.8, schedule=Table({"12it": 0.5, "20it": 0.8}))
    run(watch, finetuning(), pruning, Rewind("2it", what=what), module=module)
    assert [entry["rewound_to"] for entry in pruning.history] == [2, 2]
    assert [len(rates) for rates in watch.rates.values()] == [1] * 8 + [2] * 16
    assert watch.rates[13] == [0.01, 0.01]
    assert zeros(module) == round(0.8 * WEIGHTS)
    live = module.body[0].weight != 0
    assert not torch.equal(module.body[0].weight[live], start[live]), "it trains on"


def test_a_rollback_across_unfreezing_restores_the_state():
    """Pruned at step 8, at unfreezing, and rolled back after the validation of that epoch."""

    class Scored(Transfer):
        def on_validation_epoch_end(self):
            self.log("score", [1.0, 0.0, 1.0, 1.0][self.trainer.current_epoch])

    module = Scored()
    pruning = MagnitudePruning(0.8, schedule=OneShot("8it"))
    budget = AccuracyBudget("score", 0.1, recover="8it")
    fit(module, finetuning(), pruning, budget, data=data(), val=data(), max_epochs=4)
    assert pruning.history[0]["kind"] == "rollback"
    assert zeros(module) == pruning.masks.pruned


def test_a_criterion_that_ignores_gradients_ranks_frozen_layers_too():
    """Masks are those of magnitude, although no optimizer trains the first layer."""
    module = Transfer(ADAM)
    before = weights(module)
    expected = magnitude_masks(
        {name: weight.clone() for name, weight in before.items()}, round(0.5 * WEIGHTS)
    )
    module.body[0].requires_grad_(False)
    pruning = MagnitudePruning(0.5, schedule=OneShot(0), criterion=lambda w, grad: w.abs())
    fit(module, pruning, data=data(), max_epochs=1)
    assert all(torch.equal(pruning.masks[name], mask) for name, mask in expected.items())
