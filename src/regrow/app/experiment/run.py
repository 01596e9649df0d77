# SPDX-License-Identifier: MIT
"""Run one job: train, prune, measure, write result.json."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from torch.optim import Optimizer

from regrow.app.config import recipe_export
from regrow.app.config.hashing import config_hash, settings
from regrow.app.experiment import evaluate as evaluation
from regrow.app.experiment.dense_baseline import DenseBaseline, start_weights, train_dense_baseline
from regrow.app.experiment.result import (
    Result,
    budget,
    compare,
    device_name,
    finished_result,
    latency_record,
    show_result,
    speed_record,
    verdict,
    versions,
)
from regrow.app.experiment.small_checkpoint import small_checkpoint, summarize_channels
from regrow.app.training.build import build_pruning, with_teacher
from regrow.app.training.distributed_fit import fit
from regrow.app.training.fit import LevelRecorder
from regrow.app.training.module_metrics import evaluate, metric_of, split_of
from regrow.app.training.preflight import check_settings, set_up
from regrow.app.training.processes import exclusive
from regrow.callbacks.channel_pruning import ChannelPruning
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.io.files import read_json, write_atomic, write_json, write_text
from regrow.report.load import CLAIMED, FILE, FORMAT, look_up
from regrow.utils.errors import ConfigError
from regrow.utils.lightning_classes import pl
from regrow.utils.logging import info, quiet_third_party


def train(cfg: DictConfig, baseline: DenseBaseline | None = None) -> Result:
    """Run one job in its folder and return its result.

    A finished job with the same settings is not repeated; an interrupted one resumes. `baseline` is
    the dense network to compare with; None: one trained for as many epochs.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    quiet_third_party()
    if cfg.threads is not None:
        torch.set_num_threads(int(cfg.threads))
    check_settings(cfg)
    with exclusive(folder):
        return _load_or_run(cfg, folder, baseline)


def _load_or_run(cfg: DictConfig, folder: Path, baseline: DenseBaseline | None) -> Result:
    """Return the result on disk, or run the job."""
    pruning, key = build_pruning(cfg), config_hash(cfg)
    if cfg.force:
        _clear_folder(folder)
    result = finished_result(folder, key)
    if result is not None:
        if HydraConfig.get().mode != RunMode.MULTIRUN:  # a sweep says how many were skipped
            info(f"{folder / FILE}: already finished; use force=true to rerun")
            show_result(result)
        return result
    module, data, optimizers, _ = set_up(cfg, build_pruning(cfg))
    judged = judged_fields(cfg, module, data) | {"lr": _initial_lr(optimizers)}
    _claim_folder(folder, key)
    started = time.perf_counter()
    baseline = baseline or train_dense_baseline(cfg)
    hydra = HydraConfig.get()
    words = [str(word) for word in hydra.overrides.task]
    fields = run_fields(cfg, key, str(hydra.runtime.choices["recipe"]), words)
    fields |= judged | _dense_fields(cfg, folder, baseline)
    if pruning is not None:
        fields |= _prune_and_measure(cfg, folder, pruning, baseline)
    write_text(folder / recipe_export.FILE, recipe_export.recipe_text(cfg))
    result = write_result(folder, fields, started)
    shutil.rmtree(folder / "levels", ignore_errors=True)
    show_result(result)
    return result


def write_result(folder: Path, fields: dict[str, Any], started: float) -> Result:
    """Complete a result by its verdict and the time since `started`, and write it."""
    result = fields | {"seconds": round(time.perf_counter() - started, 1)}
    result["verdict"] = verdict(result)
    write_json(folder / FILE, result)
    return result


def judged_fields(
    cfg: DictConfig, module: pl.LightningModule, data: pl.LightningDataModule
) -> dict[str, Any]:
    """Return by what networks are compared, and on what."""
    metric, mode = metric_of(cfg, module)
    return {"metric": metric, "metric_mode": mode, "split": split_of(module, data)}


def _initial_lr(optimizers: Sequence[Optimizer]) -> float | None:
    """Return the learning rate with which the first optimizer starts, without warm-up."""
    group = optimizers[0].param_groups[0] if optimizers else {}
    rate = group.get("initial_lr", group.get("lr"))
    return None if rate is None else float(rate)


def _dense_fields(cfg: DictConfig, folder: Path, baseline: DenseBaseline) -> dict[str, Any]:
    """Return the fields of the dense baseline."""
    checkpoint = folder / "checkpoints" / "best.ckpt"
    if not cfg.pruning:
        write_atomic(checkpoint, lambda file: file.write(baseline.checkpoint.read_bytes()))
    return {
        "dense": dict(baseline.block),
        "pruned": None,
        "epochs": baseline.epochs,
        "levels": [],
        "history": [],
        "budget": None,
        "checkpoint": os.path.relpath(checkpoint, folder),
    }


def _prune_and_measure(
    cfg: DictConfig, folder: Path, pruning: PruningCallback, baseline: DenseBaseline
) -> dict[str, Any]:
    """Prune, then measure both networks from their checkpoints."""
    taught = with_teacher(cfg, baseline.checkpoint)
    checkpoint, recorder = fit(taught, folder, start_weights(cfg), pruning)
    if isinstance(cutter := build_pruning(cfg), ChannelPruning):
        checkpoint = small_checkpoint(cfg, checkpoint, cutter)
    network, _ = evaluation.load_network(cfg, baseline.checkpoint)
    dense = evaluation.MeasuredNetwork(baseline.block, network)
    assert recorder is not None
    fields, pruned = compared_fields(cfg, folder, dense, checkpoint)
    return fields | {"levels": _test_levels(cfg, recorder, pruned)}


def compared_fields(
    cfg: DictConfig, folder: Path, dense: evaluation.MeasuredNetwork, checkpoint: Path
) -> tuple[dict[str, Any], evaluation.MeasuredNetwork]:
    """Measure the pruned network of a checkpoint, and compare it with the dense one."""
    pruning = build_pruning(cfg)
    assert pruning is not None
    pruned = evaluation.measure(cfg, checkpoint, pruning)
    timed = evaluation.time_networks(cfg, dense.module, pruned.module)
    before = {**dense.block, "latency_ms": latency_record(timed.reference)}
    after = {**pruned.block, "latency_ms": latency_record(timed.model)}
    fields = {
        "dense": before,
        "pruned": after,
        "speed": speed_record(timed.speedup),
        **sparsity_fields(pruning, dense.module),
        **compare(before, after, *metric_of(cfg, pruned.module)),
        "history": pruning.history,
        "budget": budget(pruning.history),
        "checkpoint": os.path.relpath(checkpoint, folder),
    }
    return fields, pruned


def sparsity_fields(pruning: PruningCallback, dense: torch.nn.Module) -> dict[str, Any]:
    """Return the sparsity in total and per layer, and the excluded parameters."""
    weights = sum(parameter.numel() for parameter in dense.parameters())
    if isinstance(pruning, ChannelPruning):
        return summarize_channels(pruning, weights)
    masks = pruning.masks
    return {
        "of": "weights",
        "sparsity": masks.sparsity,
        "sparsity_total": masks.pruned / weights,
        "layers": {name: 1 - masks.density(name) for name in masks},
        "excluded": dict(pruning.pruner.state.selection.reasons),
    }


def _test_levels(
    cfg: DictConfig, recorder: LevelRecorder, pruned: evaluation.MeasuredNetwork
) -> list[dict[str, Any]]:
    """Return each level with its test accuracy; the final network is not tested twice."""
    levels = []
    for index, (level, weights) in enumerate(recorder.weights()):
        last = index == len(recorder.levels) - 1
        if last and level["sparsity"] == pruned.sparsity:
            scores = pruned.block
        else:
            scores = evaluate(cfg, *evaluation.load_network(cfg, weights))
        shown = {metric_of(cfg, pruned.module)[0], "loss"} & scores.keys()
        levels.append(level | {f"test_{name}": scores[name] for name in sorted(shown)})
    return levels


def run_fields(cfg: DictConfig, key: str, recipe: str, overrides: list[str]) -> dict[str, Any]:
    """Return what a result says about its run."""
    return {
        "format": FORMAT,
        "recipe": recipe,
        "overrides": overrides,
        "config_hash": key,
        "settings": settings(cfg),
        "seed": int(cfg.seed),
        "versions": versions(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "batch": int(cfg.latency.batch),
    }


def _claim_folder(folder: Path, key: str) -> None:
    """Mark the folder as used by this run, or raise if it has another run."""
    mark = folder / CLAIMED
    if mark.is_file() and look_up(read_json(mark), "config_hash") != key:
        raise ConfigError(
            f"{folder} has a run with other settings (a recipe, a file of yours or regrow has "
            "changed): write force=true to replace it, or hydra.run.dir=... for another folder"
        )
    write_json(mark, {"config_hash": key})


def _clear_folder(folder: Path) -> None:
    """Delete the files of an earlier run in this folder."""
    for name in ("checkpoints", "levels", "logs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (FILE, recipe_export.FILE, CLAIMED):
        (folder / name).unlink(missing_ok=True)
