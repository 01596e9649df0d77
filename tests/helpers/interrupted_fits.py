# SPDX-License-Identifier: MIT
"""Interrupted and resumed fits: a resumable loader, a checkpoint in mid-fit, final states."""

import random
from pathlib import Path

import torch
from lightning.pytorch import Callback
from tiny_fits import ADAM, Net, fit, read, samples

from regrow import RandomState
from regrow.data.tensor_loader import BatchLoader


class Save(Callback):
    """Saves once, at a step."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class Cut(Callback):
    """Interrupt the fit after a checkpoint was written."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_start(self, *_):
        if self.path.exists():
            raise KeyboardInterrupt


class Noisy(Net):
    """Draws numbers in training, so that the generators' state counts too."""

    def forward(self, inputs):
        return self.body(inputs)

    def training_step(self, batch, batch_idx):
        inputs = torch.nn.functional.dropout(batch[0], 0.3)
        loss = super().training_step((inputs, batch[1]), batch_idx)
        self.log("train/loss", loss)
        return loss


def data(batches=8):
    """Batches in another order each epoch, from wherever an epoch was cut."""
    return BatchLoader(*samples(4 * batches).tensors, batch_size=4, shuffle=True)


def run(path, *callbacks, make=ADAM, **kw):
    """Trains to the end, and returns what a checkpoint then holds of it."""
    torch.manual_seed(0)
    random.seed(0)  # a fork draws anew
    made = fit(Noisy(make), RandomState(), *callbacks, data=data(), **kw)
    made.save_checkpoint(path)
    return end_of(Path(path))


def end_of(path):
    """The part of a final state that must be equal for equal runs."""
    end = read(path)
    callbacks = {key: state for key, state in end["callbacks"].items() if "Checkpoint" not in key}
    return [end["state_dict"], end["optimizer_states"], callbacks, end["global_step"]]
