# SPDX-License-Identifier: MIT
"""Set up a fit and stop before its first step."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import DictConfig, OmegaConf

from regrow.app.config.initial_weights import SCRATCH, load_initial_weights
from regrow.app.config.instantiate import instantiate_node, is_foreign, wrap_error
from regrow.app.data.base import DataModule
from regrow.app.training.build import build_callbacks, build_data, build_module
from regrow.app.training.classifier import Classifier
from regrow.app.training.default_teacher import with_teacher
from regrow.app.training.distributed_fit import check_single_node, world_size
from regrow.callbacks.accuracy_budget import AccuracyBudget
from regrow.callbacks.core.base import Callback
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.support.teacher import START
from regrow.schedules.base import Milestone
from regrow.utils.errors import ConfigError, check_choice, suggest

LOGGED = ("val/accuracy", "val/accuracy_top5", "val/loss")


def check_settings(cfg: DictConfig) -> None:
    """Refuses settings of the command that would do nothing, or that it cannot follow.

    Raises:
        ConfigError: Naming the setting and what to write.
    """
    check_single_node()
    world_size(cfg)
    check_choice("monitor", cfg.monitor, LOGGED)
    check_choice("monitor_mode", cfg.monitor_mode, ("max", "min"))
    if cfg.trainer.get("fast_dev_run"):
        raise ConfigError(
            "trainer.fast_dev_run saves nothing that could be measured: write `regrow plan` to see "
            "what would happen, or trainer.max_epochs=1"
        )
    if cfg.start == SCRATCH:
        idle = {"dense_epochs": cfg.dense_epochs} | {
            f"finetune.{key}": value for key, value in cfg.finetune.items()
        }
        for name, value in idle.items():
            if value is not None:
                raise ConfigError(
                    f"{name}={value} does nothing with start=scratch, which trains once: write "
                    "start=null, or set optimizer.lr, data.batch_size or trainer.max_epochs"
                )


def set_up(cfg: DictConfig, pruning: PruningCallback | None) -> tuple[Classifier, int]:
    """Sets a fit up and stops it before its first step: what must be refused is refused here.

    Args:
        cfg: The configuration of the fit.
        pruning: Is left with its pruner and its resolved plan; None trains a dense network.

    Returns:
        The module, and the optimizer steps of an epoch.

    Raises:
        ConfigError, StateError: What the fit itself would raise.
    """
    data = build_data(cfg)
    named = cfg.start is not None and cfg.start != "scratch"
    module = build_module(cfg, data, load_initial_weights(cfg.start) if named else None)
    if cfg.trainer.get("max_epochs") == 0:
        if pruning is not None:
            pruning.attach(module)
            pruning.progress.plan = (Milestone(0, pruning.final),)
        return module, 1
    callbacks = build_callbacks(with_teacher(cfg, START), pruning)  # its control is trained later
    _check_monitors_logged(callbacks)
    _try_a_step(module)
    beside = [c for c in callbacks if isinstance(c, Callback)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = instantiate_node(
            "trainer",
            on_one_device(cfg, data),
            pl.Trainer,
            callbacks=[*beside, _Stop()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            _convert_="all",
        )
        try:
            trainer.fit(module, datamodule=data)
        except _Planned:
            pass
        except Exception as error:  # nothing has trained: what others refuse is a setting
            if not is_foreign(error):
                raise
            raise wrap_error("the fit cannot be set up", error) from error
    batches = trainer.num_training_batches
    return module, max(1, -(-int(batches) // int(trainer.accumulate_grad_batches)))


def _check_monitors_logged(callbacks: Sequence[pl.Callback]) -> None:
    """Refuses to stop early, or to judge, by a metric that nobody logs."""
    if not all(type(c).__module__.startswith(("regrow.", "lightning.")) for c in callbacks):
        return  # somebody's own may log more
    known = (*LOGGED, "train/loss", "pruning/sparsity", "pruning/target")
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        stops = isinstance(callback, EarlyStopping | AccuracyBudget)
        if stops and isinstance(monitor, str) and monitor not in known:
            raise ConfigError(
                f"{type(callback).__name__} monitors {monitor!r}, which is never logged: "
                f"{suggest(monitor, LOGGED)}"
            )


def _try_a_step(module: Classifier) -> None:
    """Lets the optimizer step over one weight: some values it stumbles over only then."""
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    weight.grad = torch.zeros(1, 1)
    optimizer = module.optimizer(iter([weight]))
    try:
        optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type,return-value]
    except Exception as error:
        raise wrap_error("the optimizer cannot step with its settings", error) from error


def on_one_device(cfg: DictConfig, data: DataModule) -> DictConfig:
    """The trainer's settings with one rank's share of the batches, for a fit that is not run."""
    world, node = world_size(cfg), cfg.trainer.copy()
    if world > 1:
        data.prepare_data()
        data.setup("fit")
        share = -(-len(data.train_dataloader()) // world)
        limit = node.get("limit_train_batches")
        limit = 1.0 if limit is None else limit
        OmegaConf.set_struct(node, False)
        node._set_parent(cfg)
        node.limit_train_batches = (
            min(limit, share) if isinstance(limit, int) else int(share * limit)
        )
        node.devices, node.strategy = 1, "auto"
    return cast(DictConfig, node)


class _Planned(Exception):
    """The fit is set up."""


class _Stop(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise _Planned
