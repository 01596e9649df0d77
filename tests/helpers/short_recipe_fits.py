# SPDX-License-Identifier: MIT
"""Train a recipe's full model for two steps on small data in the right format."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from small_images import write_cifar, write_fashion_mnist, write_photographs

from regrow.app.config.recipes import register
from regrow.app.training.build import (
    build_callbacks,
    build_data,
    build_module,
    build_pruning,
    with_teacher,
)
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.utils.paths import config_dir

ONE_DEVICE = ("trainer.accelerator=cpu", "trainer.deterministic=false", "~callbacks.progress")
RESNET18 = ("model._target_=torchvision.models.resnet18",)  # in ResNet-50's place
PHOTOGRAPHS = ("data.size=64", "data.resize=72", "data.num_classes=3", "model.num_classes=3")


def job(*words: str) -> DictConfig:
    """The configuration of `regrow train WORDS...`, on the CPU."""
    _registered()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir("conf") / "app")):
        return compose("train", [*ONE_DEVICE, *words])


_registered = functools.cache(register)  # what is stored stays for the whole process


def tiny(recipe: str, folder: Path) -> list[str]:
    """Settings that make a recipe read small data, which is written into `folder` once."""
    data = recipe.partition("/")[0]
    if data != "digits" and not (folder / data).exists():
        write_data(data, folder / data)
    words = ["data.batch_size=8"]
    if recipe.endswith("_budget") or recipe == "digits/budget":
        words += ["callbacks.budget.reference=0.1"]  # there is no validation before the event
    if data == "imagenet":
        words = [*PHOTOGRAPHS, "data.num_workers=0", "data.val_size=6", "data.batch_size=2"]
    elif data != "digits":
        words += ["data.val_size=10", "data.download=false"]
    if recipe == "cifar100/vgg16_synflow":
        words += ["pruning.rounds=3"]  # of 100, a second each
    return words if data == "digits" else [*words, f"data.root={folder / data}"]


def short_fit(cfg: DictConfig, folder: Path, **given: Any) -> tuple[pl.Trainer, PruningCallback]:
    """Two training and two validation batches of what the configuration describes.

    Args:
        cfg: The configuration; what it starts from is left out.
        folder: Of the trainer.
        **given: Settings of the trainer.
    """
    cfg = with_teacher(cfg, _teacher(cfg, folder))
    pruning = build_pruning(cfg)
    callbacks = build_callbacks(cfg, pruning)
    return _fit(cfg, folder, callbacks, {"fast_dev_run": 2} | given), pruning


def planned(cfg: DictConfig, folder: Path) -> pl.Trainer:
    """A trainer whose fit is set up at its full length, and ended before its first step."""
    cfg = with_teacher(cfg, _teacher(cfg, folder))
    callbacks = [*build_callbacks(cfg, build_pruning(cfg)), Stop()]
    given = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    with contextlib.suppress(Stopped):
        return _fit(cfg, folder, callbacks, given)
    return callbacks[-1].trainer


class Stopped(Exception):
    """The fit is set up."""


class Stop(pl.Callback):
    """Ends a fit that is set up."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.trainer = trainer
        raise Stopped


def _teacher(cfg: DictConfig, folder: Path) -> Path:
    """Replaces the dense baseline: an untrained network of the same shape."""
    file = folder / "teacher.ckpt"
    torch.save({"state_dict": build_module(cfg, build_data(cfg)).state_dict()}, file)
    return file


def _fit(
    cfg: DictConfig, folder: Path, callbacks: list[pl.Callback], given: dict[str, Any]
) -> pl.Trainer:
    data = build_data(cfg)
    module = build_module(cfg, data)
    usual = {"enable_progress_bar": False, "default_root_dir": str(folder)}
    trainer = instantiate(cfg.trainer, callbacks=callbacks, **usual | given, _convert_="all")
    trainer.fit(module, datamodule=data)
    return trainer


def write_data(data: str, folder: Path) -> None:
    """Writes tiny data of one kind in its own format into a new folder."""
    if data == "imagenet":
        write_photographs(folder)
    elif data == "fashion_mnist":
        write_fashion_mnist(folder)
    else:  # the checksums change for the whole process
        write_cifar(folder, {"cifar10": 10, "cifar100": 100}[data], pytest.MonkeyPatch(), each=30)
