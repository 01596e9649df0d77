# SPDX-License-Identifier: MIT
"""Epochs of listed lengths, and a record of where they begin and of the zeros after them."""

from itertools import accumulate

from lightning.pytorch import LightningDataModule
from tiny_fits import Events, loader, trainer, zeros

LENGTHS = (8, 3, 10, 5, 2, 6)  # batches of each epoch
STARTS = tuple(accumulate(LENGTHS, initial=0))  # the first step of each, and the end


class Changing(LightningDataModule):
    """A loader of another length in each epoch, as curriculum learning has."""

    def __init__(self, lengths=LENGTHS, make=loader):
        super().__init__()
        self.lengths, self.make = lengths, make

    def train_dataloader(self):
        return self.make(self.lengths[self.trainer.current_epoch])

    def val_dataloader(self):
        return loader(1)


class Epochs(Events):
    """Remembers (epoch, batch) of events, the first step of epochs, and zeros after each."""

    def __init__(self):
        super().__init__()
        self.at, self.batch, self.starts, self.zeros = [], None, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch_idx
        if batch_idx == 0:
            self.starts.append(trainer.global_step)

    def on_prune_event(self, trainer, pl_module, event):
        super().on_prune_event(trainer, pl_module, event)
        self.at.append((event.epoch, self.batch))

    def on_train_epoch_end(self, trainer, pl_module):
        self.zeros.append(zeros(pl_module))


def fit_changing(module, *callbacks, data=None, ckpt_path=None, **kw):
    """Trains with a loader that is made anew each epoch; returns the Trainer."""
    data = Changing() if data is None else data
    settings = {"max_epochs": len(LENGTHS), "reload_dataloaders_every_n_epochs": 1}
    made = trainer(*callbacks, **(settings | kw))
    made.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return made
