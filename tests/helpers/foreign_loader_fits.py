# SPDX-License-Identifier: MIT
"""Interrupted and resumed fits with loaders of other libraries: all batches, final weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupted_fits import Cut
from lightning.pytorch import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    seed_everything,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

SAMPLES, SIZE = 40, 8  # five batches


class Noise(Dataset[tuple[Tensor, int]]):
    """Samples with noise from every global generator, as augmentation draws it."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.rand(4) + np.random.rand() + random.random()
        return torch.full((4,), float(index)) / SAMPLES + noise.float(), index % 2


class Net(LightningModule):
    """A network with dropout."""

    def __init__(self, one_cycle: bool) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
        self.one_cycle = one_cycle

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.network(batch[0])

    def configure_optimizers(self) -> Any:
        sgd = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if not self.one_cycle:
            return sgd
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=steps)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Seen(Callback):
    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, _: int) -> None:
        self.batches.append(batch[0].clone())


def fit(
    folder: Path,
    make: Callable[[], Any],
    save: dict[str, Any],
    *callbacks: Callback,
    cut: bool = False,
    resume: Path | None = None,
    one_cycle: bool = False,
    validate: bool = True,
    **kw: Any,
) -> tuple[list[Tensor], list[Tensor]]:
    seed_everything(0 if resume is None else 7, verbose=False)
    model, seen, loader = Net(one_cycle), Seen(), make()
    saving = ModelCheckpoint(folder, filename="cut", save_top_k=1, **save)
    trainer = Trainer(
        **{"max_epochs": 3} | kw,
        accelerator="cpu",
        logger=False,
        callbacks=[*callbacks, seen, saving, *([Cut(folder / "cut.ckpt")] if cut else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    validation = DataLoader(Noise(), SIZE) if validate else None
    data = {"train_dataloaders": loader, "val_dataloaders": validation}
    if isinstance(loader, LightningDataModule):
        data = {"datamodule": loader}
    if cut:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            trainer.fit(model, **data)
    else:
        trainer.fit(model, **data, ckpt_path=resume)
    return [parameter.detach() for parameter in model.parameters()], seen.batches


def check_equal(tmp_path: Path, make: Any, save: dict[str, Any], kind: Any, **kw: Any) -> None:
    weights, batches = fit(tmp_path / "whole", make, save, kind(), **kw)
    fit(tmp_path / "cut", make, save, kind(), cut=True, **kw)
    resume = tmp_path / "cut" / "cut.ckpt"
    again, rest = fit(tmp_path / "resumed", make, save, kind(), resume=resume, **kw)
    assert 0 < len(rest) < len(batches)
    assert all(map(torch.equal, rest, batches[-len(rest) :]))
    assert all(map(torch.equal, weights, again))
