# SPDX-License-Identifier: MIT
"""A recipe at its full depth for two steps, and small data in the format that it asks for."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from regrow.app.config.recipes import register
from regrow.app.training.build import build_callbacks, build_data, build_module, build_pruning
from regrow.app.training.default_teacher import with_teacher
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.utils.paths import config_dir

ONE_DEVICE = ("trainer.accelerator=cpu", "trainer.deterministic=false", "~callbacks.progress")
PHOTOGRAPHS = ("data.size=64", "data.resize=72", "data.num_classes=3", "model.num_classes=3")


def job(*words: str) -> DictConfig:
    """The configuration of `regrow train WORDS...`, on the CPU."""
    _registered()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir("conf") / "app")):
        return compose("train", [*ONE_DEVICE, *words])


_registered = functools.cache(register)  # what is stored stays for the whole process


def tiny(recipe: str, folder: Path) -> list[str]:
    """Settings that make a recipe read what `write_data` wrote into `folder`."""
    data = recipe.partition("/")[0]
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
    """In the dense control's place: a network of the same shape, untrained."""
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


def write_data(folder: Path) -> None:
    """CIFAR's pickles, Fashion-MNIST's IDX files and JPEG folders, all of them tiny."""
    formats = _formats()
    for name, parts, key, classes in (
        ("cifar10", [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"], b"labels", 10),
        ("cifar100", ["train", "test"], b"fine_labels", 100),
    ):
        (folder / name).mkdir()
        for seed, part in enumerate(parts):
            rows = formats.images(30, seed)
            labels = [(7 * i + seed) % classes for i in range(len(rows))]
            content = formats.python2_pickle({b"data": rows, key: labels})
            assert pickle.loads(content, encoding="bytes")[key] == labels
            (folder / name / part).write_bytes(content)
    (folder / "fashion_mnist").mkdir()
    for part in ("train", "t10k"):
        images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
        labels = np.arange(60, dtype=np.uint8) % 10
        for kind, values in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            start = bytes((0, 0, 8, values.ndim)) + sizes
            (folder / "fashion_mnist" / f"{kind}-ubyte").write_bytes(start + values.tobytes())
    for part, each in (("train", 8), ("val", 3)):
        for label in range(3):
            photographs = folder / "imagenet" / part / f"n0{label}"
            photographs.mkdir(parents=True)
            for number in range(each):
                (photographs / f"{number}.JPEG").write_bytes(formats.jpeg(label, number))


def _formats() -> ModuleType:
    """The makers of the data modules' own tests."""
    path = Path(__file__).parents[1] / "app" / "data" / "conftest.py"
    spec = importlib.util.spec_from_file_location("data_formats", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
