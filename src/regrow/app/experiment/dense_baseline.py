# SPDX-License-Identifier: MIT
"""Train the dense baseline of a run, once for all runs that share it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from regrow.app.config.hashing import config_hash, settings
from regrow.app.config.initial_weights import SCRATCH, load_initial_weights
from regrow.app.experiment.evaluate import measure
from regrow.app.training.build import editable_copy, without_teacher
from regrow.app.training.distributed_fit import fit
from regrow.app.training.processes import wait_for
from regrow.io.checkpoints import read_checkpoint
from regrow.io.files import read_json, write_json
from regrow.utils.logging import info


class DenseBaseline(NamedTuple):
    """A trained dense network: its checkpoint, measurements without latency, and total epochs."""

    checkpoint: Path
    block: dict[str, Any]
    epochs: int | None


def train_dense_baseline(cfg: DictConfig) -> DenseBaseline:
    """Train a run's recipe without pruning, with the same seed and epochs, or load the result.

    Jobs that need the same baseline wait for the one that trains it.
    """
    cfg = without_teacher(cfg)
    cfg.pruning = {}
    key = config_hash(cfg)
    parent = Path(cfg.paths.controls)
    folder = parent / key
    parent.mkdir(parents=True, exist_ok=True)
    with wait_for(parent / f"{key}.lock"):
        done = folder / "result.json"
        if not done.is_file() or not (folder / read_json(done)["checkpoint"]).is_file():
            weights = start_weights(cfg)
            info(f"training the dense baseline in {folder}")
            checkpoint, _ = fit(cfg, folder, weights, None)
            content = {
                "settings": settings(cfg),
                "checkpoint": os.path.relpath(checkpoint, folder),
                "block": measure(cfg, checkpoint, None).block,
            }
            write_json(done, content)
        result = read_json(done)
    return DenseBaseline(folder / result["checkpoint"], result["block"], total_epochs(cfg))


def start_weights(cfg: DictConfig) -> dict[str, Any] | None:
    """Return the weights before the fit; None: as initialized."""
    if cfg.start == SCRATCH:
        return None
    if cfg.start is None:
        dense = train_dense_baseline(_dense_training(cfg))
        return dict(read_checkpoint(dense.checkpoint)["state_dict"])
    return load_initial_weights(cfg.start)


def total_epochs(cfg: DictConfig) -> int | None:
    """Return the epochs of the fit and the dense training before it; None if unknown."""
    epochs = cfg.trainer.get("max_epochs")
    if epochs is None or cfg.start not in (None, SCRATCH):
        return None
    targets = [str(node.get("_target_")) for node in cfg.callbacks.values() if node]
    limits = cfg.trainer.get("max_steps", -1) != -1, cfg.trainer.get("max_time") is not None
    if any(limits) or any(target.endswith("EarlyStopping") for target in targets):
        return None  # it may end earlier
    if cfg.start == SCRATCH:
        return int(epochs)
    return int(epochs) + int(_dense_training(cfg).trainer.max_epochs)


def _dense_training(cfg: DictConfig) -> DictConfig:
    """Return the configuration that trains the network to prune, from scratch."""
    changed = editable_copy(cfg)
    changed.pruning, changed.start, changed.dense_epochs = {}, SCRATCH, None
    changed.finetune.lr = changed.finetune.batch_size = None
    if cfg.dense_epochs is not None:
        changed.trainer.max_epochs = cfg.dense_epochs
    return changed
