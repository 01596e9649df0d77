# SPDX-License-Identifier: MIT
"""Model checkpoints whose best is never the dense model."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from regrow.callbacks.reached import all_reached, require_pruner
from regrow.errors import ConfigError


class SparseModelCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, ranking models only once the target sparsity is reached.

    Until then, and beside the best ones afterwards, `last.ckpt` is written whenever a checkpoint
    is due, complete and resumable, so that an interrupted run loses nothing.

    Args: see `lightning.pytorch.callbacks.ModelCheckpoint`; `save_last` cannot be switched off.

    Raises:
        ConfigError: If no pruning callback is there, or for `save_last=False`.

    Example:
        >>> SparseModelCheckpoint(monitor="val/accuracy", mode="max").save_last
        True
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = True,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
    ) -> None:
        if save_last is False:
            raise ConfigError(
                "save_last=False would leave nothing to resume from before the target is reached: "
                "leave it out, or use Lightning's ModelCheckpoint"
            )
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            verbose=verbose,
            save_last=True,  # a link could point to a best model older than the run
            save_top_k=save_top_k,
            save_on_exception=save_on_exception,
            save_weights_only=save_weights_only,
            mode=mode,
            auto_insert_metric_name=auto_insert_metric_name,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=save_on_train_epoch_end,
            enable_version_counter=enable_version_counter,
        )
        self._last_saved_at = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require_pruner(trainer, self, stage)
        super().setup(trainer, pl_module, stage)

    def _save_topk_checkpoint(
        self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        if all_reached(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)
        self._save_last_checkpoint(trainer, monitor_candidates)

    def _save_last_checkpoint(
        self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        if self._last_saved_at == trainer.global_step:
            return
        weights_only, self.save_weights_only = self.save_weights_only, False
        try:
            super()._save_last_checkpoint(trainer, monitor_candidates)
        finally:
            self.save_weights_only = weights_only
        self._last_saved_at = trainer.global_step

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._last_saved_at = -1
