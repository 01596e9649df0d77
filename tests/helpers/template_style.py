# SPDX-License-Identifier: MIT
"""A data module and a LightningModule as application templates have them, on made images."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy


class MNISTDataModule(pl.LightningDataModule):
    """Splits training and test images anew; loaders are those of torch."""

    def __init__(
        self,
        train_val_test_split: tuple[int, int, int] = (200, 40, 60),
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.data_train: Any = None

    @property
    def num_classes(self) -> int:
        return 10

    def setup(self, stage: str | None = None) -> None:
        if self.trainer is not None and self.hparams.batch_size % self.trainer.world_size:
            raise RuntimeError("the batch size is not divisible by the number of devices")
        if self.data_train is None:
            generator = torch.Generator().manual_seed(42)
            labels = torch.arange(sum(self.hparams.train_val_test_split)) % 10
            images = torch.randn(len(labels), 1, 28, 28, generator=generator)
            images[torch.arange(len(labels)), 0, labels] += 2.0
            parts = random_split(
                TensorDataset(images, labels), self.hparams.train_val_test_split, generator
            )
            self.data_train, self.data_val, self.data_test = parts

    def _loader(self, part: Any, shuffle: bool = False) -> DataLoader[Any]:
        size, workers = self.hparams.batch_size, self.hparams.num_workers
        return DataLoader(part, batch_size=size, num_workers=workers, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.data_train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.data_val)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.data_test)


class SimpleDenseNet(nn.Module):
    """Two linear layers with batch normalization and dropout."""

    def __init__(self, input_size: int = 784, width: int = 32, output_size: int = 10) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(input_size, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(width, output_size),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.flatten(1))


class MNISTLitModule(pl.LightningModule):
    """Takes a network and partial functions of optimizer and scheduler, stored as settings."""

    def __init__(self, net: nn.Module, optimizer: Any, scheduler: Any, compile: bool) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = net
        self.criterion = nn.CrossEntropyLoss()
        self.train_acc, self.val_acc, self.test_acc = (MulticlassAccuracy(10) for _ in range(3))
        self.train_loss, self.val_loss, self.test_loss = (MeanMetric() for _ in range(3))
        self.val_acc_best = MaxMetric()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def on_train_start(self) -> None:
        self.val_loss.reset()
        self.val_acc.reset()
        self.val_acc_best.reset()

    def model_step(self, batch: Any, split: str) -> torch.Tensor:
        x, y = batch
        logits = self(x)
        loss = self.criterion(logits, y)
        mean, accuracy = getattr(self, f"{split}_loss"), getattr(self, f"{split}_acc")
        mean(loss)
        accuracy(logits.argmax(1), y)
        self.log(f"{split}/loss", mean, on_step=False, on_epoch=True, prog_bar=True)
        self.log(f"{split}/acc", accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.model_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.model_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True, prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.model_step(batch, "test")

    def setup(self, stage: str) -> None:
        if self.hparams.compile and stage == "fit":
            self.net = torch.compile(self.net)

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams.optimizer(params=self.trainer.model.parameters())
        if self.hparams.scheduler is None:
            return {"optimizer": optimizer}
        scheduler = self.hparams.scheduler(optimizer=optimizer)
        config = {"scheduler": scheduler, "monitor": "val/loss", "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": config}
