# SPDX-License-Identifier: MIT
"""Soft pruning compared with a manual loop: masked forward, dense update, dense ranking."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from tiny_fits import ADAM, SGD, Net, equal, fit, loader, magnitude_masks, trainer, weights, zeros

from regrow import MagnitudePruning, Pruner, Table
from regrow.callbacks.core.base import Callback
from regrow.utils.errors import ConfigError

DECAY = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


def plan():
    return Table({"3it": 0.3, "6it": 0.5, "9it": 0.7, "12it": 0.8})


def by_hand(make, steps):
    """Dense values, masked values and masks after `steps`, with nothing of regrow."""
    module = Net(make)
    named = dict(module.named_parameters())
    names = [n for n, p in named.items() if p.dim() > 1]
    masks = {n: torch.ones_like(named[n]) for n in names}
    optimizer = make(module.parameters())
    due = {3: 0.3, 6: 0.5, 9: 0.7, 12: 0.8}
    dense = {n: named[n].detach().clone() for n in names}
    batches = list(loader())
    for step in range(steps):
        if step in due:
            count = round(due[step] * sum(d.numel() for d in dense.values()))
            masks = {n: m.float() for n, m in magnitude_masks(dense, count).items()}
        with torch.no_grad():
            for name in names:
                named[name].copy_(dense[name] * masks[name])
        optimizer.zero_grad()
        module.loss(batches[step % len(batches)]).backward()
        with torch.no_grad():
            for name in names:
                named[name].copy_(dense[name])
        optimizer.step()
        dense = {n: named[n].detach().clone() for n in names}
    return dense, masks


def soft(**kw):
    return MagnitudePruning(schedule=plan(), soft=True, **kw)


class Watch(Callback):
    """Check that weights are masked outside the update, and record dense values."""

    def __init__(self, pruning):
        super().__init__()
        self.pruning, self.steps = pruning, 0

    def on_train_batch_end(self, trainer, module, *_):
        masks = self.pruning.masks
        for name, weight in weights(module).items():
            assert not weight[~masks[name]].view(torch.int32).any()
        self.steps += 1

    on_validation_batch_start = on_train_batch_end


@pytest.mark.parametrize("make", [SGD, DECAY, ADAM, ADAMW])
def test_equals_a_manual_training_loop(make):
    pruning, module = soft(), Net(make)
    watch = Watch(pruning)
    trainer(pruning, watch, max_epochs=2).fit(module, loader(), loader(2))
    dense, masks = by_hand(make, 16)
    assert watch.steps > 16
    assert zeros(module) == round(0.8 * 144)
    for name, weight in weights(module).items():
        assert torch.equal(pruning.masks[name], masks[name].bool())
        torch.testing.assert_close(weight, dense[name] * masks[name])
    pruning.unprune()
    for name, weight in weights(module).items():
        torch.testing.assert_close(weight, dense[name])


def test_weights_can_return_between_events():
    """Some weights pruned by one event are kept by a later one."""
    seen = []

    class Masks(Callback):
        def on_prune_event(self, trainer, module, event):
            seen.append(torch.cat([m.flatten() for m in event.pruner.masks.values()]))

    pruning = MagnitudePruning(0.6, schedule=Table({"1it": 0.6}), soft=True)
    pruning.session.schedule = Table({"1it": 0.5, "30it": 0.6})
    fast = partial(torch.optim.SGD, lr=1.0)
    trainer(pruning, Masks(), max_epochs=5).fit(Net(fast), loader())
    first, second = seen
    assert (second & ~first).any()


def test_resumed_run_is_the_uninterrupted_one(tmp_path):
    """From every epoch's end: before, between and after the events."""
    whole, pruning = Net(ADAM), soft()
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    trainer(pruning, keep, max_epochs=4, enable_checkpointing=True).fit(whole, loader(4))
    for step in (4, 8, 12):
        path = tmp_path / f"step={step}.ckpt"
        saved = torch.load(path, weights_only=True)["state_dict"]
        again, other = Net(ADAM), soft()
        trainer(other, max_epochs=4).fit(again, loader(4), ckpt_path=str(path))
        assert other.history == pruning.history
        for name, tensor in whole.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor)
        assert (
            sum(int((saved[n] == 0).sum()) for n in weights(whole)) == [43, 72, 101][step // 4 - 1]
        )
        other.unprune()
    pruning.unprune()
    for name, weight in weights(whole).items():
        assert torch.equal(weights(again)[name], weight)


def test_state_round_trip_keeps_the_dense_values():
    layer = torch.nn.Linear(10, 10)
    pruner = Pruner(layer, soft=True)
    dense = layer.weight.detach().clone()
    pruner.prune_to(0.9)
    other_layer = torch.nn.Linear(10, 10)
    other_layer.load_state_dict(layer.state_dict())
    other = Pruner(other_layer, soft=True)
    other.load_state_dict(pruner.state_dict())
    assert torch.equal(other_layer.weight, layer.weight)
    other.unprune()
    assert torch.equal(other_layer.weight, dense)


def test_skipped_step_leaves_no_dense_value_in_the_module():
    class Overflow(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx == 5 else loss

    pruning, module = soft(), Overflow()
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer(pruning, Watch(pruning), max_epochs=2, plugins=plugin).fit(module, loader())
    assert zeros(module) == round(0.8 * 144)
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_lbfgs_raises_before_training():
    module = Net(partial(torch.optim.LBFGS, max_iter=2))
    with pytest.raises(ConfigError, match="LBFGS runs the network within its step"):
        trainer(soft()).fit(module, loader())
    assert module.trained == 0


def test_regrow_raises():
    pruner = Pruner(torch.nn.Linear(4, 4), soft=True)
    pruner.prune_to(0.5)
    with pytest.raises(ConfigError, match="weights return by themselves"):
        pruner.regrow(0.5)


@pytest.mark.parametrize("soft", [False, True])
def test_an_earlier_checkpoint_is_evaluated_with_its_own_weights(soft, tmp_path):
    saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    module, pruning = Net(ADAM), MagnitudePruning(0.8, end=0.9, soft=soft)
    made = fit(module, pruning, saves, max_epochs=3, enable_checkpointing=True)
    path = tmp_path / "epoch=0.ckpt"
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert not equal(saved, module.state_dict())
    made.validate(module, loader(), ckpt_path=path, verbose=False)
    assert equal(saved, module.state_dict())
