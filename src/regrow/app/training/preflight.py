# SPDX-License-Identifier: MIT
"""Check the settings of a fit without training."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf

from regrow.app.config.initial_weights import SCRATCH, load_initial_weights
from regrow.app.config.instantiate import instantiate_node, is_foreign, wrap_error
from regrow.app.data.base import DataModule
from regrow.app.training.build import (
    QUIET,
    build_callbacks,
    build_data,
    build_module,
    with_teacher,
)
from regrow.app.training.classifier import Classifier
from regrow.app.training.distributed_fit import check_single_node, world_size
from regrow.callbacks.accuracy_budget import AccuracyBudget
from regrow.callbacks.core.base import Callback
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.support.teacher import START
from regrow.schedules.base import Milestone
from regrow.utils.errors import ConfigError, check_choice, suggest
from regrow.utils.lightning_classes import pl

LOGGED = ("val/accuracy", "val/accuracy_top5", "val/loss")


def check_settings(cfg: DictConfig) -> None:
    """Check the settings of the command for values without effect or support.

    Raises:
        ConfigError: Naming the setting and what to write.
    """
    check_single_node()
    world_size(cfg)
    check_choice("monitor", cfg.monitor, LOGGED)
    check_choice("monitor_mode", cfg.monitor_mode, ("max", "min"))
    if cfg.trainer.get("fast_dev_run"):
        raise ConfigError(
            "trainer.fast_dev_run saves no checkpoint to measure: use `regrow plan` to see "
            "what would happen, or trainer.max_epochs=1"
        )
    if cfg.start == SCRATCH:
        for name in ("dense_epochs", "finetune.lr", "finetune.batch_size"):
            if (value := OmegaConf.select(cfg, name)) is not None:
                raise ConfigError(
                    f"{name}={value} has no effect with start=scratch, which trains once: write "
                    "start=null, or set optimizer.lr, data.batch_size or trainer.max_epochs"
                )


def set_up(cfg: DictConfig, pruning: PruningCallback | None) -> tuple[Classifier, int]:
    """Set up a fit and stop it before its first step; `pruning` keeps its pruner and plan.

    Returns:
        The module and the optimizer steps per epoch.

    Raises:
        ConfigError, StateError: What the fit itself would raise.
    """
    data = build_data(cfg)
    weights = None if cfg.start in (None, SCRATCH) else load_initial_weights(cfg.start)
    module = build_module(cfg, data, weights)
    if cfg.trainer.get("max_epochs") == 0:
        if pruning is not None:
            pruning.attach(module)
            pruning.progress.plan = (Milestone(0, pruning.final),)
        return module, 1
    callbacks = build_callbacks(with_teacher(cfg, START), pruning)  # the baseline is trained later
    _check_monitors_logged(callbacks)
    _try_optimizer_step(module)
    suite = [c for c in callbacks if isinstance(c, Callback)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = instantiate_node(
            "trainer",
            on_one_device(cfg, data),
            pl.Trainer,
            callbacks=[*suite, _StopBeforeFirstStep()],
            **QUIET,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            _convert_="all",
        )
        try:
            trainer.fit(module, datamodule=data)
        except _SetupDone:
            pass
        except Exception as error:  # nothing has trained: foreign errors are about settings
            if not is_foreign(error):
                raise
            raise wrap_error("the fit cannot be set up", error) from error
    batches = trainer.num_training_batches
    return module, max(1, -(-int(batches) // int(trainer.accumulate_grad_batches)))


def _check_monitors_logged(callbacks: Sequence[pl.Callback]) -> None:
    """Raise if early stopping or an accuracy budget monitors a metric that is never logged."""
    packages = ("regrow.", "lightning.", "pytorch_lightning.")
    if not all(type(c).__module__.startswith(packages) for c in callbacks):
        return  # others may log more metrics
    known = (*LOGGED, "train/loss", "pruning/sparsity", "pruning/target")
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        stops = isinstance(callback, pl.callbacks.EarlyStopping | AccuracyBudget)
        if stops and isinstance(monitor, str) and monitor not in known:
            raise ConfigError(
                f"{type(callback).__name__} monitors {monitor!r}, which is never logged: "
                f"{suggest(monitor, LOGGED)}"
            )


def _try_optimizer_step(module: Classifier) -> None:
    """Run one optimizer step on one weight: some invalid values raise only then."""
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    weight.grad = torch.zeros(1, 1)
    optimizer = module.optimizer(iter([weight]))
    try:
        optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type,return-value]
    except Exception as error:
        raise wrap_error("the optimizer cannot step with its settings", error) from error


def on_one_device(cfg: DictConfig, data: DataModule) -> DictConfig:
    """Return trainer settings for one device with the batches of one rank."""
    world, node = world_size(cfg), cfg.trainer.copy()
    if world > 1:
        data.prepare_data()
        data.setup("fit")
        share = -(-len(data.train_dataloader()) // world)
        limit = node.get("limit_train_batches")
        limit = 1.0 if limit is None else limit
        OmegaConf.set_struct(node, False)
        node._set_parent(cfg)
        batches = min(limit, share) if isinstance(limit, int) else int(share * limit)
        node.limit_train_batches = batches
        node.devices, node.strategy = 1, "auto"
    return cast(DictConfig, node)


class _SetupDone(Exception):
    """Raised when the fit is set up."""


class _StopBeforeFirstStep(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise _SetupDone
