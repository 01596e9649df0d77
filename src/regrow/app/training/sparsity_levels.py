# SPDX-License-Identifier: MIT
"""Best weights at each sparsity."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.io.checkpoints import read_checkpoint
from regrow.io.files import write_atomic


def clear_levels(run: Path) -> None:
    """Removes the weights of all levels of a run, once its result is written."""
    shutil.rmtree(run / "levels", ignore_errors=True)


class LevelRecorder(pl.Callback):
    """Keeps the weights with the best monitored value at each sparsity, in one file a level.

    They are tested once, after training, and removed then.

    Args:
        pruning: Whose sparsity counts.
        folder: Where the weights go.
        monitor: The metric that chooses.
        mode: "max" or "min".
    """

    def __init__(self, pruning: PruningCallback, folder: Path, monitor: str, mode: str) -> None:
        super().__init__()
        self.pruning = pruning
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.levels: list[dict[str, Any]] = []

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
        level = {"sparsity": sparsity, "monitored": value, "epoch": int(trainer.current_epoch)}
        for name in ("val/accuracy", "val/loss"):
            if name in trainer.callback_metrics:
                level[name.replace("/", "_")] = float(trainer.callback_metrics[name])
        if trainer.is_global_zero:
            state = {"state_dict": pl_module.state_dict()}
            self.pruning.on_save_checkpoint(trainer, pl_module, state)  # its shapes, if cut
            write_atomic(self._file(len(self.levels)), lambda file: torch.save(state, file))
        self.levels.append(level)

    def weights(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Each level with a checkpoint of its weights, on the CPU."""
        for index, level in enumerate(self.levels):
            yield level, read_checkpoint(self._file(index))

    def state_dict(self) -> dict[str, Any]:
        return {"levels": [dict(level) for level in self.levels]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.levels = [dict(level) for level in state_dict["levels"]]

    def _file(self, index: int) -> Path:
        return self.folder / f"level{index:03d}.pt"
