# SPDX-License-Identifier: MIT
"""Train a short fit, resumed from its last.ckpt if there is one: python killed_fit.py FOLDER."""

import sys
from pathlib import Path

import torch
from tiny_fits import ADAM, Net, equal, fit, read, samples
from torch import nn

from regrow import Cubic, MagnitudePruning, RandomState, SparseModelCheckpoint
from regrow.data.tensor_loader import BatchLoader


class Noisy(Net):
    def training_step(self, batch, batch_idx):
        inputs = nn.functional.dropout(batch[0], 0.3)
        loss = super().training_step((inputs, batch[1]), batch_idx)
        self.log("train/loss", loss)
        return loss


def run(folder, epochs=25):
    """Trains from last.ckpt, if there is one, and returns what a checkpoint at the end says."""
    folder = Path(folder)
    torch.manual_seed(0)
    last = folder / "last.ckpt"
    made = fit(
        Noisy(ADAM),
        RandomState(),
        MagnitudePruning(0.9, schedule=Cubic(0.1, 0.8, "5it")),
        SparseModelCheckpoint(folder, monitor="train/loss", every_n_train_steps=2),
        data=BatchLoader(*samples().tensors, batch_size=4, shuffle=True),
        max_epochs=epochs,
        enable_checkpointing=True,
        ckpt_path=last if last.exists() else None,
    )
    made.save_checkpoint(folder / "end.ckpt")
    end = read(folder / "end.ckpt")
    [pruning] = (v for k, v in end["callbacks"].items() if k.startswith("MagnitudePruning"))
    return [end["state_dict"], end["optimizer_states"], pruning, end["global_step"]]


def same(one, other):
    return equal(one, other)


if __name__ == "__main__":
    run(sys.argv[1])
