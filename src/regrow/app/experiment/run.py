# SPDX-License-Identifier: MIT
"""Run one job: train, prune, measure, write result.json."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from regrow.app.config import recipe_export
from regrow.app.config.hashing import config_hash, settings
from regrow.app.experiment import evaluate as evaluation
from regrow.app.experiment.dense_baseline import DenseBaseline, start_weights, train_dense_baseline
from regrow.app.experiment.result import (
    Measurements,
    Result,
    budget,
    compare,
    device_name,
    finished_result,
    latency_record,
    speed_record,
    verdict,
    versions,
)
from regrow.app.experiment.result_table import show_result
from regrow.app.experiment.small_checkpoint import small_checkpoint, summarize_channels
from regrow.app.training.build import build_pruning, with_teacher
from regrow.app.training.distributed_fit import fit
from regrow.app.training.locks import exclusive
from regrow.app.training.module_metrics import evaluate, metric_of, split_of
from regrow.app.training.preflight import check_settings, set_up
from regrow.app.training.sparsity_levels import LevelRecord, LevelRecorder
from regrow.callbacks.channel_pruning import ChannelPruning
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.io.files import read_json, write_atomic, write_json
from regrow.report.load import CLAIMED, FILE, FORMAT
from regrow.utils.errors import ConfigError
from regrow.utils.logging import info, quiet_third_party


def train(cfg: DictConfig) -> Result:
    """Run one job in its folder and return its result.

    A finished job with the same settings is not repeated; an interrupted one resumes.

    Raises:
        ConfigError, StateError: For invalid settings, before training starts.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    quiet_third_party()
    if cfg.threads is not None:
        torch.set_num_threads(int(cfg.threads))
    check_settings(cfg)
    with exclusive(folder):
        return _load_or_run(cfg, folder)


def _load_or_run(cfg: DictConfig, folder: Path) -> Result:
    """Return the result on disk, or run the job."""
    pruning, key = build_pruning(cfg), config_hash(cfg)
    if cfg.force:
        _clear_folder(folder)
    result = finished_result(folder, key)
    if result is not None:
        if HydraConfig.get().mode != RunMode.MULTIRUN:  # a sweep says how many were skipped
            info(f"{folder / FILE}: already finished; use force=true to rerun")
            show_result(dict(result))
        return result
    module, data, *_ = set_up(cfg, build_pruning(cfg))
    metric, mode = metric_of(cfg, module)
    judged = {"metric": metric, "metric_mode": mode, "split": split_of(module, data)}
    _claim_folder(folder, key)
    started = time.perf_counter()
    baseline = train_dense_baseline(cfg)
    measured = _dense_fields(cfg, folder, baseline)
    if pruning is not None:
        measured |= _prune_and_measure(cfg, folder, pruning, baseline)
        measured |= compare(measured["dense"], measured["pruned"], metric, mode)
    seconds = round(time.perf_counter() - started, 1)
    result = cast(Result, _run_fields(cfg, key) | judged | measured | {"seconds": seconds})
    result["verdict"] = verdict(result)
    recipe_export.write_recipe(cfg, folder)
    write_json(folder / FILE, result)
    shutil.rmtree(folder / "levels", ignore_errors=True)
    show_result(dict(result))
    return result


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
    fitted = fit(with_teacher(cfg, baseline.checkpoint), folder, start_weights(cfg), pruning)
    checkpoint, cutter = fitted.checkpoint, build_pruning(cfg)
    if isinstance(cutter, ChannelPruning):
        checkpoint = small_checkpoint(cfg, checkpoint, cutter)
    reloaded = build_pruning(cfg)
    assert reloaded is not None and fitted.levels is not None
    pruned = evaluation.measure(cfg, checkpoint, reloaded)
    levels = _test_levels(cfg, fitted.levels, pruned)
    network, _ = evaluation.load_network(cfg, baseline.checkpoint)
    timed = evaluation.time_networks(cfg, network, pruned.module)
    dense_block: Measurements = {**baseline.block, "latency_ms": latency_record(timed.reference)}
    pruned_block: Measurements = {**pruned.block, "latency_ms": latency_record(timed.model)}
    return {
        "dense": dense_block,
        "pruned": pruned_block,
        "speed": speed_record(timed.speedup),
        **_sparsity_fields(reloaded, network),
        "levels": levels,
        "history": reloaded.history,
        "budget": budget(reloaded.history),
        "checkpoint": os.path.relpath(checkpoint, folder),
    }


def _sparsity_fields(pruning: PruningCallback, dense: torch.nn.Module) -> dict[str, Any]:
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
) -> list[LevelRecord]:
    """Return each level with its test accuracy; the final network is not tested twice."""
    levels: list[LevelRecord] = []
    for index, (level, weights) in enumerate(recorder.weights()):
        last = index == len(recorder.levels) - 1
        if last and level["sparsity"] == pruned.sparsity:
            scores: Any = pruned.block
        else:
            scores = evaluate(cfg, *evaluation.load_network(cfg, weights))
        shown = {metric_of(cfg, pruned.module)[0], "loss"} & scores.keys()
        tested: Any = {f"test_{name}": scores[name] for name in sorted(shown)}
        levels.append({**level, **tested})
    return levels


def _run_fields(cfg: DictConfig, key: str) -> dict[str, Any]:
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


def _claim_folder(folder: Path, key: str) -> None:
    """Mark the folder as used by this run, or raise if it has another run."""
    mark = folder / CLAIMED
    if mark.is_file() and read_json(mark)["config_hash"] != key:
        raise ConfigError(
            f"{folder} has a run with other settings (a recipe or regrow has changed): write "
            "force=true to replace it, or hydra.run.dir=... for another folder"
        )
    write_json(mark, {"config_hash": key})


def _clear_folder(folder: Path) -> None:
    """Delete the files of an earlier run in this folder."""
    for name in ("checkpoints", "levels", "logs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (FILE, recipe_export.FILE, CLAIMED):
        (folder / name).unlink(missing_ok=True)
