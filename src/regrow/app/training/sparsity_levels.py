# SPDX-License-Identifier: MIT
"""Record the best weights at each sparsity."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.io.checkpoints import read_checkpoint
from regrow.io.files import write_atomic
from regrow.utils.lightning_classes import LightningCallback, pl


class LevelRecord(TypedDict):
    """Best network at one sparsity; accuracies are fractions."""

    sparsity: float
    monitored: float
    epoch: int
    val_accuracy: NotRequired[float]
    val_loss: NotRequired[float]
    test_accuracy: NotRequired[float]
    test_loss: NotRequired[float]


class LevelRecorder(LightningCallback):
    """Save the weights with the best monitored value at each sparsity, one file per level.

    They are tested once, after training, and deleted. `mode` ("max" or "min") says which value of
    the metric `monitor` is best.
    """

    def __init__(self, pruning: PruningCallback, folder: Path, monitor: str, mode: str) -> None:
        super().__init__()
        self.pruning = pruning
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.levels: list[LevelRecord] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.monitor])
        sparsity = self.pruning.sparsity
        if self.levels and self.levels[-1]["sparsity"] == sparsity:
            best = self.levels[-1]["monitored"]
            if value <= best if self.mode == "max" else value >= best:
                return
            self.levels.pop()
        epoch = int(trainer.current_epoch)
        level: LevelRecord = {"sparsity": sparsity, "monitored": value, "epoch": epoch}
        metrics = trainer.callback_metrics
        if "val/accuracy" in metrics:
            level["val_accuracy"] = float(metrics["val/accuracy"])
        if "val/loss" in metrics:
            level["val_loss"] = float(metrics["val/loss"])
        if trainer.is_global_zero:
            state = {"state_dict": pl_module.state_dict()}
            # adds the shapes of a compacted module
            self.pruning.on_save_checkpoint(trainer, pl_module, state)
            write_atomic(self._file(len(self.levels)), lambda file: torch.save(state, file))
        self.levels.append(level)

    def weights(self) -> Iterator[tuple[LevelRecord, dict[str, Any]]]:
        """Yield each level with a checkpoint of its weights, on the CPU."""
        for index, level in enumerate(self.levels):
            yield level, read_checkpoint(self._file(index))

    def state_dict(self) -> dict[str, Any]:
        return {"levels": [level.copy() for level in self.levels]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.levels = [level.copy() for level in state_dict["levels"]]

    def _file(self, index: int) -> Path:
        return self.folder / f"level{index:03d}.pt"
