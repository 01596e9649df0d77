# SPDX-License-Identifier: MIT
"""SparseEarlyStopping: early stopping that waits for the target sparsity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regrow.callbacks.core.queries import all_schedules_done, check_has_pruner
from regrow.utils.lightning_classes import base_class, pl

if TYPE_CHECKING:
    EarlyStopping = pl.callbacks.EarlyStopping
else:
    EarlyStopping = base_class("callbacks.EarlyStopping")


class SparseEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping, active once every pruning callback has reached its target.

    While weights are being pruned the metric may fall, and the dense model's best value is no
    reference for the sparse one.

    Args: see `lightning.pytorch.callbacks.EarlyStopping`.

    Raises:
        ConfigError: If there is no pruning callback.

    Example:
        >>> SparseEarlyStopping("val/accuracy", mode="max", patience=5).patience
        5
    """

    waits_for_target = True  # others warn beside a pruning callback

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_has_pruner(trainer, self, stage)
        super().setup(trainer, pl_module, stage)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if all_schedules_done(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if all_schedules_done(trainer):
            super().on_validation_end(trainer, pl_module)
