# SPDX-License-Identifier: MIT
"""A GAN: two optimizers, a pruner each or one over both, against a loop in plain PyTorch."""

from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import BATCHES, Events, copied, equal, fit, magnitude_masks, weights
from torch import nn, optim

from regrow import MagnitudePruning, OneShot, Table
from regrow.data.tensor_loader import BatchLoader

ADAM = partial(optim.Adam, lr=0.01, betas=(0.5, 0.9))
DATA = torch.randn(4 * BATCHES, 6, generator=torch.Generator().manual_seed(2))
REAL, FAKE = torch.ones(4, 1), torch.zeros(4, 1)
judge = nn.functional.binary_cross_entropy_with_logits


def networks():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 6))
    critic = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    return generator, critic


def noise(number):
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(number))


def critic_loss(generator, critic, real, number):
    made = generator(noise(number)).detach()
    return judge(critic(real), REAL) + judge(critic(made), FAKE)


def generator_loss(generator, critic, number):
    return judge(critic(generator(noise(number))), REAL)


class Gan(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = networks()

    def configure_optimizers(self):
        return ADAM(self.generator.parameters()), ADAM(self.critic.parameters())

    def training_step(self, batch, batch_idx):
        number = self.trainer.current_epoch * BATCHES + batch_idx
        first, second = self.optimizers()
        self.toggle_optimizer(second)
        loss = critic_loss(self.generator, self.critic, batch[0], number)
        self.update(second, loss)
        self.toggle_optimizer(first)
        self.update(first, generator_loss(self.generator, self.critic, number))

    def update(self, optimizer, loss):
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)


def loader():
    return BatchLoader(DATA, torch.zeros(len(DATA)), batch_size=4)


def by_hand(events, epochs=3):
    """The same in plain PyTorch; `events`: batch -> [(parts of names, weights to prune)]."""
    model = nn.Module()
    model.generator, model.critic = networks()
    optimizers = ADAM(model.generator.parameters()), ADAM(model.critic.parameters())
    masks = {}

    def obey():
        for name, p in model.named_parameters():
            if name in masks:
                gone = ~masks[name]
                p.data[gone] = 0
                for optimizer in optimizers:
                    for value in optimizer.state.get(p, {}).values():
                        if value.shape == p.shape:
                            value[gone] = 0

    def update(optimizer, loss):
        optimizer.zero_grad()
        held = {p for group in optimizer.param_groups for p in group["params"]}
        loss.backward(inputs=list(held))
        for name, p in model.named_parameters():
            if name in masks and p in held:
                p.grad[~masks[name]] = 0
        optimizer.step()
        obey()

    for number in range(epochs * BATCHES):
        for part, count in events.get(number, ()):
            found = {n: p for n, p in weights(model).items() if n.startswith(part)}
            masks |= magnitude_masks({n: p.clone() for n, p in found.items()}, count)
            obey()
        real = DATA.split(4)[number % BATCHES]
        update(optimizers[1], critic_loss(model.generator, model.critic, real, number))
        update(optimizers[0], generator_loss(model.generator, model.critic, number))
    return copied(model), masks


def one_each():
    return (
        MagnitudePruning(0.5, schedule=OneShot("1ep"), include="generator"),
        MagnitudePruning(0.75, schedule=Table({"1ep": 0.25, "2ep": 0.75}), include="critic"),
    )


def over_both():
    return (MagnitudePruning(0.75, schedule=Table({"1ep": 0.25, "2ep": 0.75})),)


EVENTS = {
    one_each: {8: [("generator", 80), ("critic", 28)], 16: [("critic", 84)]},
    over_both: {8: [("", 68)], 16: [("", 204)]},
}


def run(suite, *callbacks, **kw):
    module = Gan()
    fit(module, *suite, *callbacks, data=loader(), max_epochs=3, **kw)
    return copied(module), {name: mask for one in suite for name, mask in one.masks.items()}


@pytest.mark.parametrize("suite", EVENTS)
def test_equals_a_manual_training_loop(suite):
    tensors, masks = run(suite())
    expected, kept = by_hand(EVENTS[suite])
    assert equal(masks, kept)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("suite", [one_each, pytest.param(over_both, marks=pytest.mark.slow)])
def test_resumed_run_is_the_uninterrupted_run(suite, tmp_path):
    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    whole = run(suite(), saves, enable_checkpointing=True)
    for step in (6, 16, 18, 32, 40):  # of both optimizers: two a batch
        assert equal(whole, run(suite(), ckpt_path=tmp_path / f"step={step}.ckpt")), step


def test_gradients_are_ranked_at_the_step_of_their_optimizer():
    """Taylor scores |g w|, of the gradients that plain PyTorch finds for the same batch."""
    suite = [
        MagnitudePruning(0.5, schedule=OneShot("1ep"), include=part, criterion="taylor")
        for part in ("generator", "critic")
    ]
    seen = {}

    class Before(Events):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for name, p in weights(pl_module).items():
                live = dict(pl_module.named_parameters())[name]
                if live.grad is not None and any(
                    live is q for group in optimizer.param_groups for q in group["params"]
                ):
                    seen[name] = (p * live.grad).abs().clone()

        def on_prune_event(self, trainer, pl_module, event):
            super().on_prune_event(trainer, pl_module, event)
            [pruner] = [one for one in suite if one is event.pruner]
            scores = {name: seen[name].clone() for name in pruner.masks}
            count = sum(mask.numel() for mask in pruner.masks.values()) // 2
            assert equal(dict(pruner.masks), magnitude_masks(scores, count))

    events = Before()
    fit(Gan(), events, *suite, data=loader(), max_epochs=3)
    assert len(events.seen) == 2
