# SPDX-License-Identifier: MIT
"""Build the data, module, callbacks and logger of a fit from its configuration."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from regrow.app.config.hashing import CLASSIFICATION, settings
from regrow.app.config.initial_weights import SCRATCH, network_weights
from regrow.app.config.instantiate import (
    instantiate_node,
    instantiate_partial,
    public_path,
    wrap_error,
)
from regrow.app.training.classifier import Classifier, Task
from regrow.app.training.processes import on_rank_zero
from regrow.callbacks.core.base import Callback
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.sparse_early_stopping import SparseEarlyStopping
from regrow.callbacks.sparse_model_checkpoint import SparseModelCheckpoint
from regrow.data.dataset_loader import seed_generators
from regrow.utils.errors import ConfigError, join_limited, suggest
from regrow.utils.lightning_classes import lightning_classes, pl

_ONLY_WITH_PRUNING = (Callback, SparseEarlyStopping, SparseModelCheckpoint)
_DISTILL = ("regrow.Distill",)
_INT8 = ("regrow.app.training.FakeQuantization",)
# Callbacks that the dense network is trained without.
_PRUNED_ONLY = (
    *_DISTILL,
    "regrow.AlternatingPhases",
    *_INT8,
)


def seed_all(seed: int) -> None:
    """Seed torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def build_data(cfg: DictConfig) -> pl.LightningDataModule:
    """Return the data module, with the batch size of fine-tuning if set."""
    seed_all(cfg.seed)
    node = cfg.data
    if cfg.start != SCRATCH and cfg.finetune.batch_size is not None:
        node = editable_copy(node)
        node._set_parent(cfg)
        node.batch_size = cfg.finetune.batch_size
    return _make_data(node)


def _make_data(node: DictConfig) -> pl.LightningDataModule:
    try:
        kinds: tuple[type[pl.LightningDataModule], ...] = lightning_classes("LightningDataModule")
        return instantiate_node("data", node, kinds)
    except ConfigError as error:
        if "LightningDataModule is needed" not in str(error):
            raise
        raise ConfigError(
            f"{error}; for datasets of torch write data=datasets data.train._target_=..., for "
            "loaders a LightningDataModule that returns them"
        ) from error


def build_module(
    cfg: DictConfig, data: pl.LightningDataModule, weights: Mapping[str, Any] | None = None
) -> pl.LightningModule:
    """Return the module to train, initialized by the seed or with the weights of a checkpoint.

    A LightningModule is returned as it is; an `nn.Module` becomes the network of the `task`.
    """
    seed_all(cfg.seed)
    model = instantiate_node("model", cfg.model, torch.nn.Module)
    if weights is not None:
        given, own = weights, model.state_dict()
        weights = network_weights(given, own)
        if weights.keys() - own.keys() and isinstance(model, lightning_classes("LightningModule")):
            model.configure_model()  # some build their layers there; Lightning calls it again
            own = model.state_dict()
            weights = network_weights(given, own)
        _check_weights_fit(own, weights)
        model.load_state_dict(weights)
    if isinstance(model, lightning_classes("LightningModule")):
        module: Any = model
        if module.example_input_array is None:
            module.example_input_array = example_input(cfg, data)
    else:
        example = example_input(cfg, data)
        module = _make_task(cfg, model, data, example)
        module.example_input_array = example
    if getattr(data, "channels_last", False):
        module.to(memory_format=torch.channels_last)
    return cast("pl.LightningModule", module)


def _make_task(
    cfg: DictConfig, network: torch.nn.Module, data: pl.LightningDataModule, example: Any
) -> Task:
    node = cfg.get("task") or CLASSIFICATION  # older runs have none
    make = instantiate_node("task", node, functools.partial, _partial_=True)
    arguments: dict[str, Any] = {}
    smoothing = float(cfg.get("label_smoothing", 0.0))  # older runs have none
    if isinstance(make.func, type) and issubclass(make.func, Classifier):
        arguments["num_classes"] = _count_classes(cfg, network, data, example)
        arguments["label_smoothing"] = smoothing
    elif smoothing:
        raise ConfigError(f"label_smoothing={smoothing} has no effect with {node['_target_']}")
    rate = {"lr": cfg.finetune.lr} if cfg.start != SCRATCH and cfg.finetune.lr is not None else {}
    optimizer = instantiate_partial("optimizer", cfg.optimizer, **rate)
    scheduler = instantiate_partial("scheduler", cfg.scheduler) if cfg.scheduler else None
    try:
        task = make(network, optimizer, scheduler, **arguments)
    except Exception as error:
        raise wrap_error("task could not be created from its settings", error) from error
    if not isinstance(task, Task):
        raise ConfigError(
            f"task._target_={node['_target_']} makes a {type(task).__name__}: write a subclass of "
            "regrow.app.training.Task, or give a whole LightningModule as model._target_"
        )
    return task


def network_of(module: torch.nn.Module) -> torch.nn.Module:
    """Return the network of a task, or a LightningModule of another kind itself."""
    return module.network if isinstance(module, Task) else module


def load_weights(module: torch.nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Load the weights of a checkpoint into the network of a module, whose shapes they have."""
    network = network_of(module)
    network.load_state_dict(network_weights(checkpoint, network.state_dict()))


def example_input(cfg: DictConfig, data: pl.LightningDataModule) -> Any:
    """Return the input of one example: zeros of `data.input_shape`, or from a training batch."""
    shape = getattr(data, "input_shape", None)
    if shape is not None:
        return torch.zeros(1, *shape)
    node = OmegaConf.to_container(editable_copy(cfg).data, resolve=True)
    batch = _first_batch(json.dumps(node, default=str))
    inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(inputs, Tensor):
        raise ConfigError(
            f"the inputs of a training batch are no tensor but {type(inputs).__name__}: set "
            "example_input_array in the LightningModule, which forward() takes"
        )
    return inputs[:1].clone()


@functools.cache
def _first_batch(node: str) -> Any:
    """Read the first training batch of a data module of its own, with the settings in JSON."""
    data = _make_data(OmegaConf.create(json.loads(node)))
    with seed_generators(0):
        try:
            data.prepare_data()
            data.setup("fit")
            return next(iter(data.train_dataloader()))
        except Exception as error:
            raise wrap_error("data gives no training batch", error) from error


def _count_classes(
    cfg: DictConfig, network: torch.nn.Module, data: pl.LightningDataModule, example: Any
) -> int:
    """Count classes by a forward pass, and check that the network fits those of the data."""
    pair = f"model {cfg.model['_target_']} does not fit data {cfg.data['_target_']}"
    shape = tuple(example.shape[1:])
    try:
        with torch.no_grad():
            logits = network.eval()(example)
    except RuntimeError as error:
        raise ConfigError(
            f"{pair}, whose images are {shape}: {error}; choose another model, or set "
            "model.in_channels or model.input_shape"
        ) from error
    finally:
        network.train()
    classes = getattr(data, "num_classes", None)
    if isinstance(logits, Tensor) and logits.shape == (1, classes or logits.shape[-1]):
        return int(logits.shape[-1])
    given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if classes is None:
        raise ConfigError(
            f"task=classification needs logits (N, classes), the output of {cfg.model['_target_']} "
            f"for one example is {given}: write task._target_=..., or give a LightningModule"
        )
    raise ConfigError(
        f"{pair}: its output for one image has shape {given}, the data has {classes} classes: "
        f"write model.num_classes={classes}"
    )


def build_pruning(cfg: DictConfig) -> PruningCallback | None:
    """Return the pruning callback; None for `pruning=none`."""
    node = cfg.pruning
    if isinstance(node, str):
        raise ConfigError(
            f"the config group 'pruning' was not found, Hydra read pruning={node!r} as a plain "
            "string: is regrow installed in this environment?"
        )
    if not node:
        return None
    _check_known_keys(node)
    return instantiate_node("pruning", node, PruningCallback, _convert_="all")


def _check_known_keys(node: DictConfig) -> None:
    """Raise on a misspelt setting added with `+`, which Hydra accepts."""
    if "_target_" not in node:
        return
    try:
        target = get_object(node["_target_"])
        allowed = inspect.signature(target).parameters
    except Exception as error:
        raise wrap_error("pruning could not be created from its settings", error) from error
    for key in map(str, node):
        if key not in allowed and not key.startswith("_"):
            raise ConfigError(f"pruning.{key} is unknown: {suggest(key, list(allowed))}")


def build_callbacks(cfg: DictConfig, pruning: PruningCallback | None) -> list[pl.Callback]:
    """Return the enabled callbacks, the pruning callback first."""
    nodes = [(f"callbacks.{name}", node) for name, node in cfg.callbacks.items() if node]
    kinds = lightning_classes("Callback")
    callbacks = [instantiate_node(name, node, kinds, _convert_="all") for name, node in nodes]
    if pruning is None:
        return [callback for callback in callbacks if not isinstance(callback, _ONLY_WITH_PRUNING)]
    return [pruning, *callbacks]


def build_logger(cfg: DictConfig, folder: Path) -> pl.loggers.Logger | bool:
    """Return the logger, writing into `folder`, with the settings logged; False for `none`."""
    if not cfg.logger:
        return False
    node = cfg.logger.copy()
    OmegaConf.set_struct(node, False)
    if "save_dir" in node:
        node.save_dir = str(folder)
    _keep_earlier_metrics(folder / "logs" / "metrics.csv")
    try:
        kinds: tuple[type[pl.loggers.Logger], ...] = lightning_classes("loggers.Logger")
        logger = instantiate_node("logger", node, kinds, _convert_="all")
    except ConfigError as error:
        cause = error.__cause__ and error.__cause__.__cause__
        if not isinstance(cause, ImportError):
            raise
        raise ConfigError(
            f"{node['_target_']} needs a package that is not installed ({cause}): "
            "install it, or write logger=csv"
        ) from error
    try:
        logger.log_hyperparams(flatten_settings(settings(cfg)))  # opens its files before training
    except Exception as error:
        raise wrap_error("logger cannot be used with its settings", error) from error
    return logger


def _check_weights_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        raise ConfigError(
            f"the weights do not fit the model of the settings: {join_limited(problems, 5, '; ')}"
        )


def _keep_earlier_metrics(path: Path) -> None:
    """Rename the metrics of an interrupted run, which Lightning's CSV logger would delete."""
    if on_rank_zero() and path.is_file():
        parts = len(list(path.parent.glob("metrics.*.csv")))
        path.rename(path.with_name(f"metrics.{parts}.csv"))


def flatten_settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to one dict with keys such as "a/b"."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten_settings(value, f"{name}/") if isinstance(value, dict) else {name: value}
    return flat


def check_int8_used(cfg: DictConfig) -> None:
    """Refuse fake quantization where no network is pruned and trained with it."""
    untrained = cfg.trainer.get("max_epochs") == 0
    if _matching_callbacks(cfg, _INT8) and (untrained or not cfg.pruning):
        raise ConfigError(
            "callbacks=int8 trains a pruned network, and has no effect with pruning=none or "
            "trainer.max_epochs=0: choose a pruning method and train, or write callbacks=default"
        )


def with_teacher(cfg: DictConfig, teacher: Path | str) -> DictConfig:
    """Return the configuration with `teacher` for each `Distill` without one."""
    names = _matching_callbacks(cfg, _DISTILL)
    missing = [name for name in names if cfg.callbacks[name].get("teacher") is None]
    if not missing:
        return cfg
    changed = editable_copy(cfg)
    for name in missing:
        changed.callbacks[name].teacher = str(teacher)
    return changed


def without_teacher(cfg: DictConfig) -> DictConfig:
    """Return the configuration without the callbacks that only a pruned network is trained with."""
    changed = editable_copy(cfg)
    for name in _matching_callbacks(cfg, _PRUNED_ONLY):
        changed.callbacks.pop(name)
    return changed


def _matching_callbacks(cfg: DictConfig, targets: tuple[str, ...]) -> list[str]:
    nodes = cfg.get("callbacks") or {}
    return [
        str(name)
        for name, node in nodes.items()
        if node and public_path(str(node.get("_target_"))) in targets
    ]


def editable_copy(cfg: DictConfig) -> DictConfig:
    """Return a copy of a configuration to which keys can be added."""
    changed = copy.deepcopy(cfg)
    OmegaConf.set_struct(changed, False)
    return changed
