# SPDX-License-Identifier: MIT
"""Check the settings of a fit without training."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from regrow.app.config.initial_weights import SCRATCH, load_initial_weights
from regrow.app.config.instantiate import instantiate_node, is_foreign, wrap_error
from regrow.app.training.build import (
    build_callbacks,
    build_data,
    build_module,
    check_int8_used,
    with_teacher,
)
from regrow.app.training.classifier import Classifier, Task
from regrow.app.training.distributed_fit import check_single_node, world_size
from regrow.app.training.lightning_packages import follow, lightning_package, with_package
from regrow.app.training.module_metrics import LOGGED, QUIET, check_metrics, split_of
from regrow.callbacks.accuracy_budget import AccuracyBudget
from regrow.callbacks.core.base import Callback
from regrow.callbacks.core.dispatch import callbacks_overriding
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.support.teacher import START
from regrow.schedules.base import Milestone
from regrow.utils.errors import ConfigError, check_choice, suggest
from regrow.utils.lightning_classes import LightningCallback, pl
from regrow.utils.logging import info

# Arguments of the Trainer that the command sets itself, with what to write instead.
_REPLACED = {
    "callbacks": "+callbacks.NAME._target_=...",
    "logger": "logger=NAME",
}
# Settings of a task, not of a LightningModule.
_OF_TASKS = ("task", "optimizer", "scheduler", "label_smoothing")


class SetUp(NamedTuple):
    """A fit that was set up: module, data, optimizers, and optimizer steps per epoch."""

    module: pl.LightningModule
    data: pl.LightningDataModule
    optimizers: list[Optimizer]
    steps: int


def check_settings(cfg: DictConfig) -> None:
    """Check the settings of the command for values without effect or support."""
    check_single_node()
    world_size(cfg)
    check_int8_used(cfg)
    check_choice("monitor_mode", cfg.monitor_mode, ("max", "min"))
    if cfg.trainer.get("fast_dev_run"):
        raise ConfigError(
            "trainer.fast_dev_run saves no checkpoint to measure: use `regrow plan` to see "
            "what would happen, or trainer.max_epochs=1"
        )
    for name, instead in _REPLACED.items():
        if cfg.trainer.get(name) is not None:
            raise ConfigError(f"trainer.{name} has no effect: write {instead}")
    _check_last_epoch_is_validated(cfg)
    if cfg.trainer.get("max_epochs") == 0 and (
        cfg.start == SCRATCH or (cfg.start is None and not cfg.dense_epochs)
    ):
        raise ConfigError(
            "trainer.max_epochs=0 prunes without training, and with "
            f"start={cfg.start or 'null'} nothing trains the dense network: write "
            "start=null dense_epochs=20, or start=CHECKPOINT"
        )
    if cfg.start == SCRATCH:
        for name in ("dense_epochs", "finetune.lr", "finetune.batch_size"):
            if (value := OmegaConf.select(cfg, name)) is not None:
                raise ConfigError(
                    f"{name}={value} has no effect with start=scratch, which trains once: write "
                    "start=null, or set optimizer.lr, data.batch_size or trainer.max_epochs"
                )


def _check_last_epoch_is_validated(cfg: DictConfig) -> None:
    """Check that a fit ends with a validation, which chooses the network to measure."""
    every = cfg.trainer.get("check_val_every_n_epoch")
    for name in ("trainer.max_epochs", *(("dense_epochs",) if cfg.start is None else ())):
        epochs = OmegaConf.select(cfg, name)
        if every and epochs and epochs > 0 and epochs % every:
            raise ConfigError(
                f"trainer.check_val_every_n_epoch={every} does not divide {name}={epochs}, so that "
                f"the last epochs are not validated: write {name}={epochs - epochs % every + every}"
            )


def set_up(cfg: DictConfig, pruning: PruningCallback | None) -> SetUp:
    """Set up a fit and stop it before its first step; `pruning` keeps its pruner and plan."""
    data = build_data(cfg)
    weights = None if cfg.start in (None, SCRATCH) else load_initial_weights(cfg.start)
    module = build_module(cfg, data, weights)
    _check_used(cfg, module)
    package = lightning_package(module)
    cfg, data = with_package(cfg, package), follow(data, package)
    if cfg.trainer.get("max_epochs") == 0:
        check_metrics(cfg, module, data)
        if pruning is not None:
            pruning.attach(module)
            pruning.progress.plan = (Milestone(0, pruning.final),)
        return SetUp(module, data, [], 1)
    callbacks = build_callbacks(with_teacher(cfg, START), pruning)  # the baseline is trained later
    if isinstance(module, Classifier):
        _check_monitors_logged(callbacks)
    if isinstance(module, Task):
        _try_optimizer_step(module)
    suite = [c for c in callbacks if isinstance(c, Callback)]
    stop = _StopBeforeFirstStep()
    with tempfile.TemporaryDirectory() as folder:
        trainer = instantiate_node(
            "trainer",
            on_one_device(cfg, data),
            package.Trainer,
            callbacks=[*suite, stop],
            **QUIET,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            _convert_="all",
        )
        try:
            with suppress(_SetupDone):
                trainer.fit(module, datamodule=data)
            check_metrics(cfg, module, data)
        except Exception as error:  # nothing has trained: foreign errors are about settings
            if not is_foreign(error):
                raise
            raise wrap_error("the fit cannot be set up", error) from error
    _say_what_holds(module, data, trainer)
    batches, window = trainer.num_training_batches, int(trainer.accumulate_grad_batches)
    steps = max(1, trainer.max_steps if math.isinf(batches) else -(-int(batches) // window))
    return SetUp(module, data, stop.optimizers, steps)


def _check_used(cfg: DictConfig, module: pl.LightningModule) -> None:
    """Raise for settings of the command line that a LightningModule of its own does not use."""
    if isinstance(module, Task):
        return
    words = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    words += [f"finetune.lr={cfg.finetune.lr}"] if cfg.finetune.lr is not None else []
    for word in words:
        key = str(word).lstrip("+~").partition("=")[0]
        if key.partition(".")[0] in _OF_TASKS or key == "finetune.lr":
            raise ConfigError(
                f"{word} has no effect: model._target_={cfg.model['_target_']} is a "
                "LightningModule, which has its own loss and optimizers: leave it out, and set "
                "arguments of the module, model.NAME=..."
            )


def _say_what_holds(module: pl.LightningModule, data: Any, trainer: pl.Trainer) -> None:
    """Log what differs from a recipe of regrow: optimizers, the measured split, exact resume."""
    if not isinstance(module, Task):
        info(
            f"{type(module).__name__} is trained as itself: the settings "
            f"{', '.join(_OF_TASKS)} are not used"
        )
    if split_of(module, data) == "val":
        info("no test set: networks are measured on the validation set, which also selects them")
    if not hasattr(trainer.train_dataloader, "state_dict"):
        info(
            f"the training loader ({type(trainer.train_dataloader).__name__}) does not save its "
            "position: a run that is resumed from the end of an epoch is the uninterrupted one, "
            "but the rest of an interrupted epoch would have a new order (data=datasets has not)"
        )


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


def _try_optimizer_step(module: Task) -> None:
    """Run one optimizer step on one weight: some invalid values raise only then."""
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    weight.grad = torch.zeros(1, 1)
    optimizer = module.optimizer(iter([weight]))
    try:
        optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type,return-value]
    except Exception as error:
        raise wrap_error("the optimizer cannot step with its settings", error) from error


def on_one_device(cfg: DictConfig, data: pl.LightningDataModule) -> DictConfig:
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


class _StopBeforeFirstStep(LightningCallback):
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.optimizers = list(trainer.optimizers)
        for callback in callbacks_overriding(trainer, "on_suite_epoch_start"):
            callback.on_suite_epoch_start(trainer, pl_module)
        raise _SetupDone
