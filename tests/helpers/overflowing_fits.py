# SPDX-License-Identifier: MIT
"""float16 with a gradient scaler, and networks that overflow at given steps."""

import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from tiny_fits import Net


def scaled(scale=128.0, growth=2000, device="cpu"):
    """Lightning's own float16 plugin; "16-mixed" alone would be bfloat16 on a CPU."""
    scaler = torch.amp.GradScaler(device, init_scale=scale, growth_interval=growth)
    return {"plugins": MixedPrecision("16-mixed", device, scaler)}


class Overflowing(Net):
    """Its loss is infinite at some optimizer steps, as `trainer.global_step` counts them."""

    at = ()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if self.trainer.global_step in self.at else loss


def overflowing(*at, make=None):
    module = Overflowing() if make is None else Overflowing(make)
    module.at = at
    return module


class BiasOverflows(Net):
    """Only the gradient of a bias, which is not pruned, is infinite at these steps."""

    at = ()

    def on_after_backward(self):
        if self.trainer.global_step in self.at:
            self.body[0].bias.grad.fill_(float("inf"))


class Steps(Callback):
    """Counts the steps that were made and those that the scaler skipped; keeps all weights."""

    def __init__(self):
        self.made, self.weights, self.dense = 0, {}, {}

    def on_train_start(self, trainer, pl_module):
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self.count)

    def count(self, *_):
        self.made += 1

    def on_train_batch_start(self, trainer, pl_module, *_):
        named = pl_module.named_parameters()
        self.weights[trainer.global_step] = {n: p.detach().clone() for n, p in named}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.named_parameters()
        self.dense[trainer.global_step] = {n: p.grad.detach().clone() for n, p in named}
