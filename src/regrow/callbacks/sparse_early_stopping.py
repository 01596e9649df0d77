# SPDX-License-Identifier: MIT
"""SparseEarlyStopping."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping

from regrow.callbacks.core.queries import all_schedules_done, check_has_pruner


class SparseEarlyStopping(EarlyStopping):
    """Lightning's EarlyStopping, acting only once every pruning callback has reached its target.

    Until then the metric falls because weights go, which is no reason to stop; and the dense
    model's best value is none that the sparse one must beat.

    Args: see `lightning.pytorch.callbacks.EarlyStopping`.

    Raises:
        ConfigError: If no pruning callback is there to wait for.

    Example:
        >>> SparseEarlyStopping("val/accuracy", mode="max", patience=5).patience
        5
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_has_pruner(trainer, self, stage)
        super().setup(trainer, pl_module, stage)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if all_schedules_done(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if all_schedules_done(trainer):
            super().on_validation_end(trainer, pl_module)
