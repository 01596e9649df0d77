# SPDX-License-Identifier: MIT
"""Train, prune, measure, write result.json."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from regrow.app.config.hashing import config_hash, settings
from regrow.app.config.recipe_export import FILE as RECIPE
from regrow.app.config.recipe_export import write_recipe
from regrow.app.experiment.dense_baseline import DenseBaseline, start_weights, train_dense_baseline
from regrow.app.experiment.evaluate import Measured, evaluate, load_network, measure, time_networks
from regrow.app.experiment.result import (
    FILE,
    FORMAT,
    budget,
    compare,
    device_name,
    finished_result,
    verdict,
    versions,
)
from regrow.app.experiment.result_table import show_result
from regrow.app.experiment.small_checkpoint import described, small_checkpoint
from regrow.app.training.build import build_pruning
from regrow.app.training.default_teacher import with_teacher
from regrow.app.training.distributed_fit import fit
from regrow.app.training.locks import exclusive
from regrow.app.training.preflight import check_settings, set_up
from regrow.app.training.sparsity_levels import LevelRecorder, clear_levels
from regrow.callbacks.channel_pruning import ChannelPruning
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.io.files import read_json, write_atomic, write_json
from regrow.profiling.latency import Latency
from regrow.utils.errors import ConfigError
from regrow.utils.logging import info, quiet_third_party


def train(cfg: DictConfig) -> dict[str, Any]:
    """Runs one job in its folder and returns its result.

    A finished job of the same settings is not run again; an interrupted one goes on.

    Raises:
        ConfigError, StateError: Before training starts, for whatever cannot be meant.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    quiet_third_party()
    if cfg.threads is not None:
        torch.set_num_threads(int(cfg.threads))
    check_settings(cfg)
    with exclusive(folder):
        result = _result(cfg, folder)
    show_result(result)
    return result


def _result(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """The result that stands, or that of running the job now."""
    pruning, key = build_pruning(cfg), config_hash(cfg)
    if cfg.force:
        _clear(folder)
    result = finished_result(folder, key)
    if result is not None:
        info(f"{folder / FILE} stands; force=true runs it again")
        return result
    set_up(cfg, build_pruning(cfg))
    _claim(folder, key)
    started = time.perf_counter()
    control = train_dense_baseline(cfg)
    measured = _dense(cfg, folder, control)
    if pruning is not None:
        measured |= _pruned(cfg, folder, pruning, control)
    result = _identity(cfg, key) | measured
    result["seconds"] = round(time.perf_counter() - started, 1)
    result["verdict"] = verdict(result)
    write_recipe(cfg, folder)
    write_json(folder / FILE, result)
    clear_levels(folder)
    return result


def _dense(cfg: DictConfig, folder: Path, control: DenseBaseline) -> dict[str, Any]:
    """The control's part of the result, which is all of it without pruning."""
    checkpoint = folder / "checkpoints" / "best.ckpt"
    if not cfg.pruning:
        write_atomic(checkpoint, lambda file: file.write(control.checkpoint.read_bytes()))
    return {
        "dense": dict(control.block),
        "pruned": None,
        "epochs": control.epochs,
        "levels": [],
        "history": [],
        "budget": None,
        "checkpoint": os.path.relpath(checkpoint, folder),
    }


def _pruned(
    cfg: DictConfig, folder: Path, pruning: PruningCallback, control: DenseBaseline
) -> dict[str, Any]:
    """Prunes, then measures both networks as they lie on disk."""
    fitted = fit(with_teacher(cfg, control.checkpoint), folder, start_weights(cfg), pruning)
    checkpoint, cutter = fitted.checkpoint, build_pruning(cfg)
    if isinstance(cutter, ChannelPruning):
        checkpoint = small_checkpoint(cfg, checkpoint, cutter)
    reloaded = build_pruning(cfg)
    assert reloaded is not None and fitted.levels is not None
    pruned = measure(cfg, checkpoint, reloaded)
    levels = _levels(cfg, fitted.levels, pruned)
    network, _ = load_network(cfg, control.checkpoint)
    slow, fast = time_networks(cfg, network, pruned.module)
    dense_block = control.block | {"latency_ms": _latency(slow)}
    pruned_block = pruned.block | {"latency_ms": _latency(fast)}
    return {
        "dense": dense_block,
        "pruned": pruned_block,
        **_removed(reloaded, network),
        **compare(dense_block, pruned_block),
        "levels": levels,
        "history": reloaded.history,
        "budget": budget(reloaded.history),
        "checkpoint": os.path.relpath(checkpoint, folder),
    }


def _removed(pruning: PruningCallback, dense: torch.nn.Module) -> dict[str, Any]:
    """How much went, layer by layer, and what could not."""
    weights = sum(parameter.numel() for parameter in dense.parameters())
    if isinstance(pruning, ChannelPruning):
        return described(pruning, weights)
    masks = pruning.masks
    return {
        "of": "weights",
        "sparsity": masks.sparsity,
        "sparsity_total": masks.pruned / weights,
        "layers": {name: 1 - masks.density(name) for name in masks},
        "excluded": dict(pruning.pruner.state.selection.reasons),
    }


def _levels(cfg: DictConfig, recorder: LevelRecorder, pruned: Measured) -> list[dict[str, Any]]:
    """Each level with its test accuracy; the chosen network is not tested twice."""
    levels = []
    for index, (level, weights) in enumerate(recorder.weights()):
        last = index == len(recorder.levels) - 1
        if last and level["sparsity"] == pruned.sparsity:
            scores = pruned.block
        else:
            module, data = load_network(cfg, weights)
            scores = evaluate(cfg, module, data)
        levels.append(level | {"test_accuracy": scores["accuracy"], "test_loss": scores["loss"]})
    return levels


def _identity(cfg: DictConfig, key: str) -> dict[str, Any]:
    hydra = HydraConfig.get()
    return {
        "format": FORMAT,
        "recipe": str(hydra.runtime.choices["recipe"]),
        "overrides": [str(word) for word in hydra.overrides.task],
        "config_hash": key,
        "settings": settings(cfg),
        "seed": int(cfg.seed),
        "versions": versions(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "batch": int(cfg.latency.batch),
    }


def _latency(measured: Latency) -> dict[str, Any]:
    return {
        "median": measured.median_ms,
        "p25": measured.p25_ms,
        "p75": measured.p75_ms,
        "device": measured.device,
        "threads": measured.threads,
        "batch": measured.batch,
    }


def _claim(folder: Path, key: str) -> None:
    """Marks the folder as this run's, or refuses one that holds another run."""
    mark = folder / "run.json"
    if mark.is_file() and read_json(mark)["config_hash"] != key:
        raise ConfigError(
            f"{folder} holds a run of other settings (a recipe or regrow changed since): write "
            "force=true to replace it, or hydra.run.dir=... for another folder"
        )
    write_json(mark, {"config_hash": key})


def _clear(folder: Path) -> None:
    """Removes what an earlier run of this folder wrote, and nothing else."""
    for name in ("checkpoints", "levels", "logs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (FILE, RECIPE, "run.json"):
        (folder / name).unlink(missing_ok=True)
