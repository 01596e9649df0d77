# SPDX-License-Identifier: MIT
"""A small network with channels, and a callback that checks them during a fit."""

import lightning.pytorch as pl
import torch
from tiny_fits import ADAM, fit, loader, samples
from torch import nn

from regrow import ChannelPruning, RandomState, Table
from regrow.data.tensor_loader import BatchLoader

LEVELS = Table({"3it": 0.25, "11it": 0.5, "18it": 0.6})
# where the channels of a layer stand, written down by hand
PLACES = {
    "body.0": {
        "body.0.weight": 0,
        "body.0.bias": 0,
        "body.1.weight": 0,
        "body.1.bias": 0,
        "body.3.weight": 1,
    },
    "body.3": {"body.3.weight": 0, "body.3.bias": 0, "body.6.weight": 1},
}


class Net(pl.LightningModule):
    """12 and 8 channels; with dropout, so that generators count."""

    def __init__(self, make=ADAM, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Sigmoid(), nn.Linear(12, 8), nn.ReLU(),
            nn.Dropout(0.2), nn.Linear(8, 3),
        )  # fmt: skip
        self.make = make

    def forward(self, x):
        return self.body(x)

    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss(batch))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return self.make(self.parameters())


class Zeros(pl.Callback):
    """Checks after every step, at validation and in checkpoints that masked channels are zero."""

    def __init__(self, pruning):
        self.pruning, self.looks = pruning, 0

    def on_train_start(self, trainer, pl_module):
        [optimizer] = trainer.optimizers
        optimizer.register_step_post_hook(lambda *_: self.look(pl_module, optimizer))

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.look(pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.check(checkpoint["state_dict"])

    def look(self, module, optimizer=None):
        named = dict(module.named_parameters())
        self.check({name: parameter.detach() for name, parameter in named.items()})
        for key in ("exp_avg", "exp_avg_sq", "momentum_buffer") if optimizer else ():
            state = {n: optimizer.state[p].get(key) for n, p in named.items()}
            self.check({n: v for n, v in state.items() if v is not None})

    def check(self, tensors):
        for name, gone in self.pruning.pruner.removed.items():
            for member, dim in PLACES[name].items():
                if member in tensors and len(gone):
                    self.looks += 1
                    assert not tensors[member].index_select(dim, gone).any(), member


def shuffled(epochs_batches=8):
    return BatchLoader(*samples(4 * epochs_batches).tensors, batch_size=4, shuffle=True, seed=3)


def pruning(sparsity=0.6, **kw):
    kw = {"schedule": LEVELS, "round_to": 1} | kw
    return ChannelPruning(sparsity, **kw)


def run(module, *callbacks, seed=0, **kw):
    """Three epochs of eight steps."""
    torch.manual_seed(seed)
    kw = {"data": shuffled(), "val": loader(2), "max_epochs": 3} | kw
    return fit(module, RandomState(), *callbacks, **kw)


def sizes(module):
    return module.body[0].out_features, module.body[3].out_features


def left(module):
    """The number of channels that are left of twenty."""
    return sum(sizes(module))


def output(module):
    module.eval()
    with torch.no_grad():
        return module(samples(16).tensors[0].to(module.body[0].weight.dtype))


def timer(model):
    """Milliseconds."""
    a, b = sizes(model)
    return 1.0 + (6 * a + a * b + b * 3) / 100
