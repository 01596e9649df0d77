# SPDX-License-Identifier: MIT
"""Small networks, in-memory data and checking callbacks for the tests of callbacks."""

import itertools
from functools import partial

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn, optim
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import regrow.callbacks.core.base
from regrow import MagnitudePruning

torch.set_num_threads(1)

BATCHES = 8
WEIGHTS = 6 * 16 + 16 * 3
SGD = partial(optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(optim.Adam, lr=0.01)


class Net(LightningModule):
    """Two linear layers, 144 prunable weights, with the same initial weights every time."""

    def __init__(self, make=SGD, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        self.make = make
        self.trained = 0

    def loss(self, batch):
        return nn.functional.cross_entropy(self.body(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        self.trained += 1
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss(batch))

    def predict_step(self, batch, batch_idx):
        return self.body(batch[0])

    def configure_optimizers(self):
        return self.make(self.parameters())


def samples(count=4 * BATCHES):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 6, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def loader(batches=BATCHES, batch_size=4):
    """`batches` batches of four, always in the same order."""
    return DataLoader(samples(batches * batch_size), batch_size=batch_size)


class Stream(IterableDataset):
    """Samples without a length; endless if asked."""

    def __init__(self, count=4 * BATCHES, endless=False):
        self.count, self.endless = count, endless

    def __iter__(self):
        data = samples(self.count)
        return itertools.cycle(data) if self.endless else iter(data)


def stream(**kw):
    return DataLoader(Stream(**kw), batch_size=4)


def trainer(*callbacks, **kw):
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 2,
    }
    return Trainer(callbacks=list(callbacks), **(quiet | kw))


def fit(module, *callbacks, data=None, val=None, ckpt_path=None, **kw):
    """Trains on the toy data and returns the Trainer."""
    made = trainer(*callbacks, **kw)
    made.fit(module, loader() if data is None else data, val, ckpt_path=ckpt_path)
    return made


def weights(module):
    """The prunable weights, by name."""
    return {n: p.detach() for n, p in module.named_parameters() if p.dim() > 1}


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def zeros(module):
    """How many prunable weights are exactly +0.0."""
    return sum(int((p.view(torch.int32) == 0).sum()) for p in weights(module).values())


def magnitude_masks(tensors, count):
    """Masks that prune the `count` smallest weights, by NumPy, ties by order: True = kept.

    The largest of each layer stays, so that none is emptied.
    """
    parts = [np.abs(t.cpu().numpy()).ravel() for t in tensors.values()]
    for part in parts:
        part[np.argmax(part)] = np.inf
    flat = np.concatenate(parts)
    kept = np.ones(len(flat), bool)
    kept[np.argsort(flat, kind="stable")[:count]] = False
    parts = np.split(kept, np.cumsum([t.numel() for t in tensors.values()])[:-1])
    return {
        name: torch.from_numpy(part.reshape(t.shape))
        for (name, t), part in zip(tensors.items(), parts, strict=True)
    }


class Events(regrow.callbacks.core.base.Callback):
    """Record every prune event and the hook in which it happened."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_prune_event(self, trainer, pl_module, event):
        assert trainer.state.fn == "fit"
        assert not trainer.sanity_checking
        self.seen.append((event.step, round(event.after, 6)))

    @property
    def steps(self):
        return [step for step, _ in self.seen]


class Watch(Events):
    """Check after every step, at validation and in checkpoints that pruned weights are zero.

    Which weights must be zero it finds out by itself, with NumPy, from the weights before each
    event: put it before the pruning callback.
    """

    def __init__(self):
        super().__init__()
        self.kept, self.before, self.looks = {}, {}, 0

    def on_train_start(self, trainer, pl_module):
        for optimizer in trainer.optimizers:  # after the pruning callback's own hooks
            optimizer.register_step_post_hook(lambda *_: self.look(trainer, pl_module))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = {name: p.clone() for name, p in weights(pl_module).items()}

    def on_prune_event(self, trainer, pl_module, event):
        super().on_prune_event(trainer, pl_module, event)
        self.kept = magnitude_masks(self.before, round(event.after * WEIGHTS))
        self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.look(trainer, pl_module)

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.look(trainer, pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.check(checkpoint["state_dict"], "in the checkpoint")

    def look(self, trainer, pl_module):
        self.looks += 1
        named = dict(pl_module.named_parameters())
        self.check(named, "in the model")
        for optimizer in trainer.optimizers:
            for name, kept in self.kept.items():
                state = optimizer.state.get(named[name], {})
                for key, value in state.items():
                    if torch.is_tensor(value) and value.shape == kept.shape:
                        assert not value.cpu()[~kept].any(), f"{key} of {name}"

    def check(self, tensors, where):
        for name, kept in self.kept.items():
            weight = tensors[name].detach().cpu()
            assert weight.isfinite().all(), f"{name} {where}"
            assert not weight[~kept].view(torch.int32).any(), f"{name} {where}"
            assert weight[kept].all(), f"{name} {where}: more is zero than was pruned"


def read(path):
    """A checkpoint, loaded safely."""
    return torch.load(path, map_location="cpu", weights_only=True)


def equal(one, other):
    """Whether two nests of builtins and tensors are the same, bit for bit."""
    if torch.is_tensor(one):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def prune_at_start(sparsity=0.5, **kw):
    """Prune once, before the first step."""
    return MagnitudePruning(sparsity, schedule="one_shot", begin=0, **kw)
