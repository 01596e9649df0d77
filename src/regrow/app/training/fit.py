# SPDX-License-Identifier: MIT
"""A resumable fit in this process, on a cluster too."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from regrow.app.config.hashing import settings
from regrow.app.config.instantiate import instantiate_node
from regrow.app.config.recipe_export import RecipeName
from regrow.app.training.build import (
    build_callbacks,
    build_data,
    build_logger,
    build_module,
    log_settings,
)
from regrow.app.training.lightning_packages import follow, lightning_package, with_package
from regrow.app.training.sparsity_levels import LevelRecorder
from regrow.callbacks.core.checkpoint_files import save_atomic
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.magnitude_pruning import MagnitudePruning
from regrow.callbacks.post_training_pruning import PostTrainingPruning
from regrow.callbacks.sparse_model_checkpoint import AtomicCheckpoint, SparseModelCheckpoint
from regrow.callbacks.support.event_refit import EventRefit
from regrow.io.checkpoints import check_checksums
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.lightning_classes import LightningCallback, pl

_log = logging.getLogger("regrow")


@dataclass
class FitResult:
    """Result of a fit.

    `checkpoint` has the best validation metric at the target sparsity, `levels` the best weights of
    each sparsity (None without pruning); `seconds` is the training time of this process.
    """

    checkpoint: Path
    levels: LevelRecorder | None
    seconds: float


def fit_in_process(
    cfg: DictConfig,
    folder: Path,
    weights: Mapping[str, Tensor] | None,
    pruning: PruningCallback | None,
    recipe: Mapping[str, str],
    ranks: int = 1,
) -> FitResult:
    """Train and prune in this process, saving into `folder/checkpoints`.

    An interrupted fit resumes from its last checkpoint. With `trainer.max_epochs=0` the network is
    pruned without training.

    Args:
        cfg: Configuration of the fit.
        folder: Folder of checkpoints and logs.
        weights: Initial weights; None: initialized by the seed.
        pruning: None trains the dense network.
        recipe: Recipe of the run, saved in checkpoints: see `named_recipe`.
        ranks: Processes that train together.

    Raises:
        StateError: If the fit was interrupted.
    """
    data = build_data(cfg)
    module = build_module(cfg, data, weights)
    package = lightning_package(module)
    cfg, data = with_package(cfg, package), follow(data, package)
    checkpoints = folder / "checkpoints"
    best = _make_checkpoint_callback(cfg, checkpoints, pruning)
    callbacks, levels = build_callbacks(cfg, pruning), None
    if pruning is not None:
        levels = LevelRecorder(pruning, folder / "levels", cfg.monitor, cfg.monitor_mode)
        callbacks.append(levels)
    logger = build_logger(cfg, folder)
    if logger:
        log_settings(logger, settings(cfg))
    trainer = instantiate_node(
        "trainer",
        cfg.trainer,
        package.Trainer,
        callbacks=[*callbacks, best, RecipeName(recipe), *cluster_callbacks(os.environ)],
        plugins=cluster_plugins(os.environ, ranks) or cfg.trainer.get("plugins"),
        logger=logger,
        default_root_dir=str(folder),
        _convert_="all",
    )
    started = time.perf_counter()
    if trainer.max_epochs == 0:
        path = checkpoints / "best.ckpt"
        checkpoint = _prune_without_training(trainer, module, data, pruning, path)
    else:
        last = checkpoints / "last.ckpt"
        check_checksums(last, old=False)
        trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None)
        if trainer.interrupted:
            raise StateError(f"interrupted: the same command resumes from {last}")
        checkpoint = Path(best.best_model_path or best.last_model_path)
    return FitResult(checkpoint, levels, time.perf_counter() - started)


def _make_checkpoint_callback(
    cfg: DictConfig, folder: Path, pruning: PruningCallback | None
) -> pl.callbacks.ModelCheckpoint:
    kind = AtomicCheckpoint if pruning is None else SparseModelCheckpoint
    return kind(
        dirpath=str(folder),
        filename="best",
        monitor=cfg.monitor,
        mode=cfg.monitor_mode,
        save_last=True,
        enable_version_counter=False,
    )


def _prune_without_training(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    pruning: PruningCallback | None,
    path: Path,
) -> Path:
    if pruning is not None:
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
            pruning.calibrate(data.train_dataloader())
        else:
            pruning.prune_to(pruning.final)
    save_untrained(trainer, module, path)
    return path


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
