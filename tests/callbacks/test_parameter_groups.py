# SPDX-License-Identifier: MIT
"""Parameter groups with different settings, a group added later, and layers frozen midway."""

import pytest
import torch
from lightning.pytorch import Callback
from tiny_fits import BATCHES, WEIGHTS, Net, Watch, copied, equal, fit, loader, weights, zeros
from torch import optim

from regrow import MagnitudePruning, OneShot, Table

LEVELS = Table({"3it": 0.5, "11it": 0.8})


class Groups(Net):
    """Weights decay and biases do not; the second layer learns at its own rate."""

    def configure_optimizers(self):
        first, second = self.body[0], self.body[2]
        return optim.AdamW(
            [
                {"params": [first.weight], "weight_decay": 0.1},
                {"params": [first.bias, second.bias], "weight_decay": 0.0},
                {"params": [second.weight], "lr": 0.05, "betas": (0.5, 0.9)},
            ],
            lr=0.01,
        )


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_parameter_groups_equal_manual_optimizers(criterion):
    """The same settings in three optimizer groups or in one AdamW a parameter, by hand."""
    module, pruning = Groups(), MagnitudePruning(0.8, schedule=OneShot(0), criterion=criterion)
    start = copied(module)
    fit(module, pruning)
    plain = Groups()
    plain.load_state_dict(start)
    first, second = plain.body[0], plain.body[2]
    optimizers = [
        optim.AdamW([first.weight], lr=0.01, weight_decay=0.1),
        optim.AdamW([first.bias, second.bias], lr=0.01, weight_decay=0.0),
        optim.AdamW([second.weight], lr=0.05, betas=(0.5, 0.9)),
    ]
    named = dict(plain.named_parameters())
    if criterion == "magnitude":
        for name, mask in pruning.masks.items():
            named[name].data[~mask] = 0
    for _ in range(2):
        for batch in loader():
            plain.zero_grad()
            plain.loss(batch).backward()
            for name, mask in pruning.masks.items():
                named[name].grad[~mask] = 0
                named[name].data[~mask] = 0
            for optimizer in optimizers:
                optimizer.step()
    for name, p in module.named_parameters():
        expected = named[name].detach()
        if name in pruning.masks:
            expected[~pruning.masks[name]] = 0
        assert torch.equal(p, expected), name


class Late(Callback):
    """Adds a parameter group in the middle of an epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 6:
            [optimizer] = trainer.optimizers
            optimizer.add_param_group({"params": [pl_module.body[2].weight], "lr": 0.02})


@pytest.mark.parametrize("make", [optim.Adam, optim.SGD, optim.RMSprop])
def test_parameter_group_added_later_is_masked(make):
    class Partly(Net):
        def configure_optimizers(self):
            momentum = {"momentum": 0.9} if make is not optim.Adam else {}
            return make([*self.body[0].parameters(), self.body[2].bias], lr=0.02, **momentum)

    watch, module = Watch(), Partly()
    before = module.body[2].weight.detach().clone()
    fit(module, watch, Late(), MagnitudePruning(0.8, schedule=LEVELS), max_epochs=3)
    assert watch.looks > 3 * BATCHES
    assert zeros(module) == round(0.8 * WEIGHTS)
    live = module.body[2].weight != 0
    assert not torch.equal(module.body[2].weight[live], before[live]), "it trains"


class Freeze(Callback):
    """Freezes a layer between two events, and lets it go after the second."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in (6, 14):
            pl_module.body[0].weight.requires_grad_(trainer.global_step == 14)
            self.then = weights(pl_module)["body.0.weight"].clone()
        if trainer.global_step == 13:
            found = weights(pl_module)["body.0.weight"]
            gone = (found == 0) & (self.then != 0)
            assert gone.any(), "frozen weights are pruned too"
            assert torch.equal(found[~gone], self.then[~gone])


@pytest.mark.parametrize("set_to_none", [True, False])
def test_layer_frozen_during_the_fit_stays_masked(set_to_none):
    class Zeroed(Net):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            optimizer.zero_grad(set_to_none=set_to_none)

        def configure_optimizers(self):  # from zero gradients Adam with momentum would move on
            return optim.SGD(self.parameters(), lr=0.1)

    watch, module = Watch(), Zeroed()
    fit(module, watch, Freeze(), MagnitudePruning(0.8, schedule=LEVELS), max_epochs=3)
    assert zeros(module) == round(0.8 * WEIGHTS)
    for name, weight in weights(module).items():
        assert equal(weight != 0, watch.kept[name])
