# SPDX-License-Identifier: MIT
"""Build the data, module, callbacks and logger of a fit from its configuration."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from regrow.app.config.instantiate import (
    instantiate_node,
    instantiate_partial,
    public_path,
    wrap_error,
)
from regrow.app.data.base import DataModule
from regrow.app.training.classifier import Classifier
from regrow.app.training.locks import on_rank_zero
from regrow.callbacks.core.base import Callback
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.sparse_early_stopping import SparseEarlyStopping
from regrow.callbacks.sparse_model_checkpoint import SparseModelCheckpoint
from regrow.utils.errors import ConfigError, join_limited, suggest
from regrow.utils.lightning_classes import pl

# Arguments of a Trainer that writes and prints nothing.
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
_ONLY_WITH_PRUNING = (Callback, SparseEarlyStopping, SparseModelCheckpoint)
_DISTILL = ("regrow.Distill",)
# Callbacks without effect on a dense network.
_PRUNED_ONLY = (*_DISTILL, "regrow.AlternatingPhases")


def seed_all(seed: int) -> None:
    """Seed torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def build_data(cfg: DictConfig) -> DataModule:
    """Return the data module, with the batch size of fine-tuning if set."""
    node = cfg.data
    if fine_tunes(cfg) and cfg.finetune.batch_size is not None:
        node = OmegaConf.merge(node, {"batch_size": cfg.finetune.batch_size})
    return instantiate_node("data", node, DataModule)  # type: ignore[type-abstract]


def build_module(
    cfg: DictConfig, data: DataModule, weights: Mapping[str, Tensor] | None = None
) -> Classifier:
    """Return the module to train, initialized by the seed or with `weights`.

    Raises:
        ConfigError: If the weights do not fit the network, or the network does not fit the data.
    """
    seed_all(cfg.seed)
    network = instantiate_node("model", cfg.model, torch.nn.Module)
    if weights is not None:
        check_weights_fit(network.state_dict(), weights)
        network.load_state_dict(weights)
    _check_classes_match(cfg, network, data)
    if data.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    overrides = {"lr": cfg.finetune.lr} if fine_tunes(cfg) and cfg.finetune.lr is not None else {}
    return Classifier(
        network,
        instantiate_partial("optimizer", cfg.optimizer, **overrides),
        instantiate_partial("scheduler", cfg.scheduler) if cfg.scheduler else None,
        num_classes=data.num_classes,
        label_smoothing=float(cfg.get("label_smoothing", 0.0)),  # older runs have none
        input_shape=data.input_shape,
    )


def _check_classes_match(cfg: DictConfig, network: torch.nn.Module, data: DataModule) -> None:
    """Check by a forward pass that the network fits the images and classes of the data."""
    pair = f"model {cfg.model['_target_']} does not fit data {cfg.data['_target_']}"
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(1, *data.input_shape))
    except RuntimeError as error:
        raise ConfigError(
            f"{pair}, whose images are {data.input_shape}: {error}; choose another model, or set "
            "model.in_channels or model.input_shape"
        ) from error
    finally:
        network.train()
    if logits.shape != (1, data.num_classes):
        raise ConfigError(
            f"{pair}: its output for one image has shape {tuple(logits.shape)}, the data has "
            f"{data.num_classes} classes: write model.num_classes={data.num_classes}"
        )


def fine_tunes(cfg: DictConfig) -> bool:
    """Whether the fit starts from a trained network."""
    return bool(cfg.start != "scratch")


def build_pruning(cfg: DictConfig) -> PruningCallback | None:
    """Return the pruning callback; None for `pruning=none`.

    Raises:
        ConfigError: If the config group was not found, or for unknown settings.
    """
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
    callbacks = [instantiate_node(name, node, pl.Callback, _convert_="all") for name, node in nodes]
    if pruning is None:
        return [callback for callback in callbacks if not isinstance(callback, _ONLY_WITH_PRUNING)]
    return [pruning, *callbacks]


def build_logger(cfg: DictConfig, folder: Path) -> pl.loggers.Logger | bool:
    """Return the logger, writing into `folder`; False for `logger=none`.

    Raises:
        ConfigError: If its package is not installed.
    """
    if not cfg.logger:
        return False
    node = cfg.logger.copy()
    OmegaConf.set_struct(node, False)
    if "save_dir" in node:
        node.save_dir = str(folder)
    _keep_earlier_metrics(folder / "logs" / "metrics.csv")
    try:
        return instantiate_node("logger", node, pl.loggers.Logger, _convert_="all")  # type: ignore[type-abstract]
    except ConfigError as error:
        cause = error.__cause__ and error.__cause__.__cause__
        if not isinstance(cause, ImportError):
            raise
        raise ConfigError(
            f"{node['_target_']} needs a package that is not installed ({cause}): "
            "install it, or write logger=csv"
        ) from error


def check_weights_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Check that weights have the expected names and shapes.

    Raises:
        ConfigError: Naming missing and unknown weights and different shapes.
    """
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        raise ConfigError(
            f"the weights of start= do not fit the model: {join_limited(problems, 5, '; ')}"
        )


def _keep_earlier_metrics(path: Path) -> None:
    """Rename the metrics of an interrupted run, which Lightning's CSV logger would delete."""
    if on_rank_zero() and path.is_file():
        parts = len(list(path.parent.glob("metrics.*.csv")))
        path.rename(path.with_name(f"metrics.{parts}.csv"))


def log_settings(logger: Any, values: dict[str, Any]) -> None:
    """Log the settings, which also opens the logger's files before training.

    Raises:
        ConfigError: If the logger fails.
    """
    try:
        logger.log_hyperparams(flatten_settings(values))
    except Exception as error:
        raise wrap_error("logger cannot be used with its settings", error) from error


def flatten_settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to one dict with keys such as "a/b"."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten_settings(value, f"{name}/") if isinstance(value, dict) else {name: value}
    return flat


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
    """Return the configuration without `Distill` and `AlternatingPhases`, for a dense network."""
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
