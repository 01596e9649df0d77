# SPDX-License-Identifier: MIT
"""Rewinding within a fit, against a training loop written by hand."""

import copy
import itertools
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from rewinding_fits import BACK, KEPT, ROUNDS, Looks, Normed, falling, pruning
from tiny_fits import (
    ADAM,
    BATCHES,
    SGD,
    WEIGHTS,
    copied,
    equal,
    fit,
    loader,
    magnitude_masks,
    read,
    samples,
    weights,
)
from torch import nn, optim

from regrow import MagnitudePruning, RandomState, Rewind
from regrow.data.tensor_loader import BatchLoader


class Rates(Callback):
    """The learning rate with which each step was made."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def by_hand(make, what, back=BACK, epochs=4):
    """Iterative pruning with rewinding, in plain PyTorch: weights and learning rates."""
    module = Normed(make)
    optimizer = make(module.parameters())
    position, step, masks, rates = 0, 0, {}, []
    saved = copied(module), optimizer.state_dict()
    for epoch in range(epochs):
        if epoch:
            masks = magnitude_masks(weights(module), KEPT[epoch - 1])
            if "weights" in what:
                module.load_state_dict(saved[0])
            if "lr" in what:
                position = back
            if "fresh" in what:
                optimizer = make(module.parameters())
            if "optimizer" in what:
                optimizer.load_state_dict(copy.deepcopy(saved[1]))
            mask(module, optimizer, masks)
        for batch in loader():
            for group in optimizer.param_groups:
                group["lr"] = make.keywords["lr"] * falling(BATCHES, position)
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            module.loss(batch).backward()
            optimizer.step()
            mask(module, optimizer, masks)
            position, step = position + 1, step + 1
            if step == back:
                saved = copied(module), copy.deepcopy(optimizer.state_dict())
    return module, rates


@torch.no_grad()
def mask(module, optimizer, masks):
    """Zero a pruned weight, its gradient and its momentum."""
    for name, parameter in module.named_parameters():
        if name in masks:
            parameter[~masks[name]] = 0
            for value in optimizer.state.get(parameter, {}).values():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    value[~masks[name]] = 0


WHATS = {
    "weights": ("weights", "lr", "fresh"),
    "lr": ("lr",),
    "finetune": (),
    ("weights",): ("weights",),
    ("weights", "lr"): ("weights", "lr"),
    ("weights", "lr", "optimizer"): ("weights", "lr", "optimizer"),
}


@pytest.mark.parametrize(
    ("make", "what", "back"),
    [
        pytest.param(
            *(make, what, back),
            marks=() if what == "weights" or (make, back) == (ADAM, BACK) else pytest.mark.slow,
            id=f"{back}-{what}-{'sgd' if make is SGD else 'adam'}",
        )
        for back, what, make in itertools.product([0, BACK, BATCHES], WHATS, [SGD, ADAM])
    ],
)
def test_three_rounds_equal_a_manual_loop(make, what, back):
    expected, rates = by_hand(make, WHATS[what], back)
    module, seen = Normed(make), Rates()
    callback = pruning(Rewind(f"{back}it", what))
    trainer = fit(module, seen, callback, max_epochs=4)
    assert seen.seen == pytest.approx(rates, abs=1e-12)
    assert callback.history[-1]["pruned"] == KEPT[-1]
    assert trainer.global_step == 4 * BATCHES
    for name, tensor in expected.state_dict().items():
        # the gradients at pruned places are zeroed before the step here, moments after it there
        torch.testing.assert_close(module.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)
    for name, kept in callback.masks.items():
        assert torch.equal(kept, expected.state_dict()[name] != 0)


@pytest.mark.parametrize("make", [SGD, ADAM], ids=["sgd", "adam"])
def test_each_rewind_is_bit_exact(make):
    looks, callback = Looks(), pruning()
    fit(Normed(make), callback, looks, max_epochs=4)
    assert len(looks.after) == 3
    for state in looks.after:
        for name, tensor in state.items():
            live = tensor != 0 if name in callback.masks else torch.ones_like(tensor).bool()
            assert torch.equal(tensor[live], looks.start[name][live]), name
    assert looks.start["body.1.running_mean"].any()


def test_rewind_argument_equals_rewind_callback():
    one, two, three = Normed(), Normed(), Normed()
    fit(one, pruning(), max_epochs=4)
    fit(two, pruning(None), Rewind(f"{BACK}it"), max_epochs=4)
    fit(three, Rewind(f"{BACK}it"), pruning(None), max_epochs=4)
    assert equal(copied(one), copied(two))
    assert equal(copied(one), copied(three))


@pytest.mark.parametrize("beside", [False, True])
def test_resumed_run_is_the_uninterrupted_run_in_every_phase(beside, tmp_path):
    def run(folder=None, **kw):
        saving = [] if folder is None else [
            ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        ]  # fmt: skip
        rewind = Rewind("3it", "weights" if beside else ("weights", "lr", "optimizer"))
        module, callback = Normed(ADAM), pruning(None if beside else rewind)
        if kw:
            nn.init.zeros_(module.body[0].weight)
        data = BatchLoader(*samples().tensors, batch_size=4, shuffle=True, seed=3)
        made = fit(
            module, RandomState(), callback, *[rewind][:beside], *saving, data=data, max_epochs=4,
            enable_checkpointing=bool(saving), **kw,
        )  # fmt: skip
        made.save_checkpoint(tmp_path / "end.ckpt")
        saved = read(tmp_path / "end.ckpt")
        parts = ("state_dict", "optimizer_states", "lr_schedulers")
        return [saved["callbacks"][callback.state_key], *(saved[part] for part in parts)]

    whole = run(tmp_path / "cut")
    # before the memory is taken, with it, at an event, after it, between two, at the last
    for cut in (2, 3, 5, 8, 9, 12, 16, 24, 27):
        resumed = run(ckpt_path=tmp_path / "cut" / f"step={cut}.ckpt")
        assert equal(whole, resumed), cut


def test_reinit_control_trains_the_ticket_mask_from_other_weights():
    def run(reinit):
        looks, callback = Looks(0), pruning(Rewind("0it", reinit=reinit))
        fit(Normed(), callback, looks, max_epochs=4)
        return looks, callback

    (ticket, one), (control, other) = run(None), run(7)
    assert equal(dict(one.masks), dict(other.masks))
    assert equal(ticket.after[:2], control.after[:2])
    for name, kept in one.masks.items():
        before, after = ticket.after[2][name], control.after[2][name]
        assert (before[kept] != after[kept]).any()
        assert not after[~kept].any()
        start = set(ticket.start[name].flatten().tolist())
        assert {*after[kept].tolist()} <= start


def test_random_mask_control_keeps_the_layer_densities():
    fit(Normed(), ticket := pruning(), max_epochs=4)
    densities = {name: 1 - ticket.masks.density(name) for name in ticket.masks}
    control = MagnitudePruning(
        ticket.sparsity, schedule="one_shot", begin="1ep", rewind="0it", criterion="random",
        layers=densities, seed=5,
    )  # fmt: skip
    fit(Normed(), control, max_epochs=2)
    for name in densities:
        assert control.masks.density(name) == pytest.approx(1 - densities[name])
    assert not equal(dict(ticket.masks), dict(control.masks))


@pytest.mark.parametrize("make", [SGD, ADAM, partial(optim.Adagrad, lr=0.1)])
def test_events_within_a_step_rewind_at_its_end(make):
    looks = []

    class After(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step in (BACK, BATCHES + 1, 2 * BATCHES + 1):
                looks.append((copied(pl_module), trainer.optimizers[0].param_groups[0]["lr"]))

    callback = pruning(criterion="taylor")
    fit(Normed(make), callback, After(), max_epochs=4)
    (start, rate), *rest = looks
    for state, again in rest:
        assert again == rate
        for name in start:
            live = state[name] != 0 if name in callback.masks else ...
            assert torch.equal(state[name][live], start[name][live]), name


def test_rewinding_works_with_accumulation_and_in_a_second_fit():
    callback = pruning("2it")
    module = Normed(steps=4)
    fit(module, callback, max_epochs=4, accumulate_grad_batches=2)
    assert [entry["rewound_to"] for entry in callback.history] == [2, 2, 2]
    assert callback.sparsity == KEPT[-1] / WEIGHTS
    fit(module, callback, max_epochs=1, accumulate_grad_batches=2)
    assert callback.sparsity == KEPT[-1] / WEIGHTS


def test_regrowth_does_not_rewind():
    class Back(Callback):
        def __init__(self, pruner):
            self.pruner = pruner

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                self.before = copied(pl_module)
                self.pruner.unprune()
                self.after = copied(pl_module)

    callback = MagnitudePruning(0.75, schedule=ROUNDS(), rewind="3it")
    fit(Normed(), callback, back := Back(callback), max_epochs=3)
    for name, tensor in back.before.items():
        live = tensor != 0
        assert torch.equal(back.after[name][live], tensor[live])


def test_fast_dev_run_works():
    pruner = pruning()
    fit(Normed(), pruner, fast_dev_run=True)
    assert pruner.sparsity == pytest.approx(pruner.final, abs=0.01)
