# SPDX-License-Identifier: MIT
"""Small modules and data, and fits that are cut in the middle and resumed."""

from __future__ import annotations

import contextlib
import logging
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_digests import describe
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

SGD = partial(optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(optim.Adam, lr=0.01)
ADAMW = partial(optim.AdamW, lr=0.01, weight_decay=0.01)
BATCHES, EPOCHS, CUT = 8, 5, 21  # the cut lies within the third epoch
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def seed_all(seed: int = 0) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Use one thread and no log output; restore the log levels afterwards."""
    torch.set_num_threads(1)
    names = ("lightning", "lightning.pytorch", "lightning.fabric", "regrow")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


def dense() -> nn.Sequential:
    """Three linear layers, 832 prunable weights; with dropout, so that generators count."""
    return nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Dropout(0.1),
        nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


class Residual(nn.Module):
    """Convolutions with norms, a residual sum, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.one, self.two = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(10, 12, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(10), nn.BatchNorm2d(12)
        self.hidden, self.head = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        y = self.norm2(self.two(self.norm1(self.one(x)).relu()))
        return self.head(self.hidden((x + y).relu().mean((2, 3))).relu())


class Net(LightningModule):
    """A classifier with the same initial weights every time."""

    def __init__(self, make: Callable = dense, optimizer: Callable = SGD, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.optimizer, self.rounds = make(), optimizer, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)

    def loss(self, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.rounds is None:
            return optimizer
        scheduler = optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, self.rounds)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Judge(Net):
    """Logs an accuracy that depends on the sparsity alone: 1, or 0.5 above `limit`."""

    limit = 0.6

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        [pruning] = [c for c in self.trainer.callbacks if hasattr(c, "prune_to")]
        self.log("acc", 1.0 if pruning.sparsity <= self.limit else 0.5)


class Manual(Net):
    """Manual optimisation: one optimizer for each of two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            self.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return SGD(self.body[:4].parameters()), ADAMW(self.body[4:].parameters())


ADDED_METRICS = ("pruning/sparsity_total",)  # logged only since the values were recorded


class Memo(Logger):
    """Record what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Any] = []

    name = version = "memo"

    def log_hyperparams(self, *args: Any, **kw: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        named = {k: v for k, v in metrics.items() if "/" in k and k not in ADDED_METRICS}
        self.lines.append([step, named])


class Stopped(Exception):
    """Raised to interrupt the fit."""


class Cut(Callback):
    """Save a checkpoint at a step and interrupt the fit there; must be the last callback."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step >= self.step:
            trainer.save_checkpoint(self.path)
            raise Stopped


def samples(shape: tuple[int, ...] = (8,), count: int = 4 * BATCHES) -> TensorDataset:
    made = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, *shape, generator=made)
    return TensorDataset(inputs, inputs.flatten(1)[:, :4].argmax(1))


def loader(shape: tuple[int, ...] = (8,), batches: int = BATCHES, size: int = 4) -> DataLoader:
    return DataLoader(samples(shape, batches * size), batch_size=size)


IMAGE = (1, 6, 6)


def image_net(optimizer: Callable = SGD) -> Net:
    return Net(Residual, optimizer)


def resumed(
    callbacks: Callable[[], list[Callback]],
    make: Callable[[], LightningModule] = Net,
    *,
    shape: tuple[int, ...] = (8,),
    cut: int = CUT,
    logs: bool = False,
    seen: Callable[[list[Callback]], Any] = lambda made: None,
    after: Callable[[list[Callback]], Any] = lambda made: None,
    **given: Any,
) -> dict[str, Any]:
    """A fit that is cut and resumed by new objects, to its end.

    Args:
        callbacks: Makes them anew; those with `masks` are recorded.
        make: Makes the module.
        shape: Of one sample.
        cut: After how many optimizer steps.
        logs: Whether what is logged is recorded.
        seen: What else is recorded, of the resumed fit's callbacks.
        after: What is done with them when the fit is over, before anything is recorded.
        **given: Settings of the trainer.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path, memo = Path(folder) / "cut.ckpt", [Memo(), Memo()]
        for part in (0, 1):
            seed_all(part)
            module, made = make(), callbacks()
            more = [] if part else [Cut(cut, path)]
            settings: dict[str, Any] = {**QUIET, "max_epochs": EPOCHS, **given}
            if logs:
                settings |= {"logger": memo[part], "log_every_n_steps": 4}
            settings["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in made)
            trainer = Trainer(callbacks=[*made, *more], default_root_dir=folder, **settings)
            with contextlib.suppress(Stopped):
                trainer.fit(
                    module, loader(shape), loader(shape, 2), ckpt_path=path if part else None
                )
        after(made)
        extra = [seen(trainer.callbacks), *(m.lines for m in memo)]
        pruners = [c for c in made if hasattr(c, "masks")]
        return describe(module, pruners, trainer.optimizers, extra)
