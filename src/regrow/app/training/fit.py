# SPDX-License-Identifier: MIT
"""A resumable fit in this process, on a cluster too, and its best weights at each sparsity."""

from __future__ import annotations

import importlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from regrow.app.config.instantiate import instantiate_node
from regrow.app.config.recipe_export import RecipeName
from regrow.app.training.build import build_callbacks, build_data, build_logger, build_module
from regrow.app.training.lightning_packages import follow, lightning_package, with_package
from regrow.app.training.module_metrics import short_name
from regrow.callbacks.core.checkpoint_files import save_atomic
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.magnitude_pruning import MagnitudePruning
from regrow.callbacks.post_training_pruning import PostTrainingPruning
from regrow.callbacks.sparse_model_checkpoint import AtomicCheckpoint, SparseModelCheckpoint
from regrow.callbacks.support.event_refit import EventRefit
from regrow.io.checkpoints import check_checksums, read_checkpoint
from regrow.io.files import write_atomic
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.lightning_classes import LightningCallback, pl

_log = logging.getLogger("regrow")


def fit_in_process(
    cfg: DictConfig,
    folder: Path,
    weights: Mapping[str, Tensor] | None,
    pruning: PruningCallback | None,
    recipe: Mapping[str, str],
    ranks: int = 1,
) -> tuple[Path, LevelRecorder | None]:
    """Train and prune in this process, saving into `folder/checkpoints`.

    An interrupted fit resumes from its last checkpoint. With `trainer.max_epochs=0` the network is
    pruned without training. `weights` are None for those of the seed, `ranks` are processes that
    train together. Returns the checkpoint with the best validation metric at the target sparsity,
    and the best weights of each sparsity (None without pruning).
    """
    data = build_data(cfg)
    module = build_module(cfg, data, weights)
    package = lightning_package(module)
    cfg, data = with_package(cfg, package), follow(data, package)
    checkpoints = folder / "checkpoints"
    best = (AtomicCheckpoint if pruning is None else SparseModelCheckpoint)(
        dirpath=str(checkpoints),
        filename="best",
        monitor=cfg.monitor,
        mode=cfg.monitor_mode,
        save_last=True,
        enable_version_counter=False,
    )
    callbacks, levels = build_callbacks(cfg, pruning), None
    if pruning is not None:
        levels = LevelRecorder(pruning, folder / "levels", cfg.monitor, cfg.monitor_mode)
        callbacks.append(levels)
    trainer = instantiate_node(
        "trainer",
        cfg.trainer,
        package.Trainer,
        callbacks=[*callbacks, best, RecipeName(recipe), *cluster_callbacks(os.environ)],
        plugins=cluster_plugins(os.environ, ranks) or cfg.trainer.get("plugins"),
        logger=build_logger(cfg, folder),
        default_root_dir=str(folder),
        _convert_="all",
    )
    if trainer.max_epochs == 0:
        checkpoint = checkpoints / "best.ckpt"
        if pruning is not None:
            _prune_without_training(module, data, pruning)
        save_untrained(trainer, module, checkpoint)
        return checkpoint, levels
    last = checkpoints / "last.ckpt"
    _check_resumable(last)
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None)
    if trainer.interrupted:
        raise StateError(f"interrupted: the same command resumes from {last}")
    chosen = Path(best.best_model_path or best.last_model_path)
    if not chosen.is_file():
        raise StateError(
            f"{chosen} is missing, though {last} says that the fit is done: write force=true to "
            f"train again, or remove {folder}"
        )
    return chosen, levels


def _check_resumable(last: Path) -> None:
    """Check that the last checkpoint, if there is one, is whole, and of a Trainer."""
    if not last.is_file():
        return
    check_checksums(last, old=False)
    content = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise StateError(
            f"{last} was not written by a Trainer, so that the run cannot resume from it: remove "
            "it, or write force=true to train again"
        )


def _prune_without_training(
    module: pl.LightningModule, data: pl.LightningDataModule, pruning: PruningCallback
) -> None:
    pruning.attach(module)
    if pruning.pruner.needs_gradients or pruning.pruner.collects_gradients:
        raise ConfigError(
            "this criterion needs gradients, but trainer.max_epochs=0 does not train: write "
            "trainer.max_epochs=1, or prune by magnitude"
        )
    if any(isinstance(child, EventRefit) for child in pruning.children):
        raise ConfigError(
            "refit=True refits at events of a fit, and trainer.max_epochs=0 does not train: "
            "write pruning=obs pruning.criterion=magnitude"
        )
    if isinstance(pruning, MagnitudePruning) and pruning.uses_threshold:
        pruning.prune_below(pruning.final)
    elif isinstance(pruning, PostTrainingPruning):
        pruning.calibrate(data)
    else:
        pruning.prune_to(pruning.final)


def save_untrained(trainer: pl.Trainer, module: pl.LightningModule, path: Path) -> None:
    """Write the checkpoint of a module that the trainer has not trained."""
    trainer.strategy.connect(module)
    save_atomic(trainer, str(path), trainer.save_checkpoint)


def under_submitit(env: Mapping[str, str]) -> bool:
    """Whether submitit started this process and handles time-outs and preemption."""
    return "SUBMITIT_EXECUTOR" in env


def cluster_plugins(env: Mapping[str, str], ranks: int = 1) -> list[Any]:
    """Return the Trainer plugins for a cluster; empty where Lightning's default is right.

    Under SLURM Lightning requeues a job before its time limit and waits for ranks started by srun.
    Both must be off if submitit requeues, or if one task starts all `ranks` processes.
    """
    on_slurm = any(name.startswith("SLURM_") for name in env)
    if on_slurm and (under_submitit(env) or ranks > 1):
        environments = importlib.import_module(f"{pl.__name__}.plugins.environments")
        return [environments.LightningEnvironment()]
    return []


def cluster_callbacks(env: Mapping[str, str]) -> list[pl.Callback]:
    """Return the callbacks that keep a job alive until submitit has requeued it."""
    return [_IgnoreSigterm()] if under_submitit(env) else []


class _IgnoreSigterm(LightningCallback):
    """Ignore SIGTERM during a fit, as submitit does.

    A scheduler announces preemption by SIGTERM, possibly before the signal at which submitit
    requeues. Lightning restores the former handler after the fit.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.signal(signal.SIGTERM, _log_sigterm)


def _log_sigterm(signum: int, frame: FrameType | None) -> None:
    _log.warning("SIGTERM ignored: training continues until the job is requeued or killed")


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
        epoch = int(trainer.current_epoch)
        level = {"sparsity": sparsity, "monitored": value, "epoch": epoch}
        for name in ("val/accuracy", "val/loss", self.monitor):
            if name in trainer.callback_metrics:
                level[f"val_{short_name(name)}"] = float(trainer.callback_metrics[name])
        if trainer.is_global_zero:
            state = {"state_dict": pl_module.state_dict()}
            # adds the shapes of a compacted module
            self.pruning.on_save_checkpoint(trainer, pl_module, state)
            write_atomic(self._file(len(self.levels)), lambda file: torch.save(state, file))
        self.levels.append(level)

    def weights(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each level with a checkpoint of its weights, on the CPU."""
        for index, level in enumerate(self.levels):
            if not (file := self._file(index)).is_file():
                raise StateError(
                    f"{file} is missing, with the weights at sparsity {level['sparsity']:g}: write "
                    "force=true to train again"
                )
            yield level, read_checkpoint(file)

    def state_dict(self) -> dict[str, Any]:
        return {"levels": [level.copy() for level in self.levels]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.levels = [level.copy() for level in state_dict["levels"]]

    def _file(self, index: int) -> Path:
        return self.folder / f"level{index:03d}.pt"
