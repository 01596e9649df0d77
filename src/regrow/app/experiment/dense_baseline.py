# SPDX-License-Identifier: MIT
"""The dense network of a run, trained once."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from regrow.app.config.hashing import config_hash, settings
from regrow.app.config.initial_weights import load_initial_weights, network_weights
from regrow.app.experiment.evaluate import measure
from regrow.app.training.default_teacher import without_teacher
from regrow.app.training.distributed_fit import fit
from regrow.app.training.locks import wait_for
from regrow.io.checkpoints import read_checkpoint
from regrow.io.files import read_json, write_json
from regrow.utils.logging import info


class DenseBaseline(NamedTuple):
    """A trained dense network.

    Attributes:
        key: The hash of its settings.
        checkpoint: Its file.
        block: Its measured accuracy, loss and size, without latency.
        epochs: How long it was trained in all.
    """

    key: str
    checkpoint: Path
    block: dict[str, Any]
    epochs: int | None


def train_dense_baseline(cfg: DictConfig) -> DenseBaseline:
    """The control of a run: its recipe, seed and epochs, with pruning none.

    Jobs that run side by side and need the same one wait for whoever trains it.
    """
    cfg = _without_pruning(cfg)
    key = config_hash(cfg)
    controls = Path(cfg.paths.controls)
    folder = controls / key
    controls.mkdir(parents=True, exist_ok=True)
    with wait_for(controls / f"{key}.lock", "the dense network, which another job is training"):
        done = folder / "result.json"
        if not done.is_file() or not (folder / read_json(done)["checkpoint"]).is_file():
            weights = start_weights(cfg)
            info(f"training the dense network into {folder}")
            fitted = fit(cfg, folder, weights, None)
            write_json(
                done,
                {
                    "settings": settings(cfg),
                    "checkpoint": os.path.relpath(fitted.checkpoint, folder),
                    "block": measure(cfg, fitted.checkpoint, None).block,
                },
            )
        result = read_json(done)
    return DenseBaseline(key, folder / result["checkpoint"], result["block"], total_epochs(cfg))


def start_weights(cfg: DictConfig) -> dict[str, Tensor] | None:
    """The network's weights before the fit; None: as initialised."""
    if cfg.start == "scratch":
        return None
    if cfg.start is None:
        dense = train_dense_baseline(_training_first(cfg))
        return network_weights(read_checkpoint(dense.checkpoint))
    return load_initial_weights(cfg.start)


def total_epochs(cfg: DictConfig) -> int | None:
    """Epochs of the fit and of the dense training before it; None where that is unknown."""
    epochs = cfg.trainer.get("max_epochs")
    if epochs is None or cfg.start not in (None, "scratch"):
        return None
    if cfg.trainer.get("max_steps", -1) != -1 or cfg.trainer.get("max_time") is not None:
        return None  # it may end earlier
    if cfg.start == "scratch":
        return int(epochs)
    return int(epochs) + int(_training_first(cfg).trainer.max_epochs)


def _without_pruning(cfg: DictConfig) -> DictConfig:
    return without_teacher(_changed(cfg, {"pruning": {}}))


def _training_first(cfg: DictConfig) -> DictConfig:
    """The training of the network that is pruned later: from scratch, with its own epochs."""
    changed = _changed(
        cfg,
        {
            "pruning": {},
            "start": "scratch",
            "dense_epochs": None,
            "finetune": {"lr": None, "batch_size": None},
        },
    )
    if cfg.dense_epochs is not None:
        changed.trainer.max_epochs = cfg.dense_epochs
    return changed


def _changed(cfg: DictConfig, values: dict[str, Any]) -> DictConfig:
    changed = copy.deepcopy(cfg)
    OmegaConf.set_struct(changed, False)
    for key, value in values.items():
        changed[key] = value
    return changed
