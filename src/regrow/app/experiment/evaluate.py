# SPDX-License-Identifier: MIT
"""Measure accuracy, size and speed of a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch.utils._pytree import tree_map

from regrow.app.training.build import build_data, build_module, load_weights
from regrow.app.training.module_metrics import evaluate, metric_of
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.support.checkpoint_shapes import fit_shapes
from regrow.io.checkpoints import KEY, read_checkpoint
from regrow.profiling.cost import cost
from regrow.profiling.latency import Comparison, compare_latency
from regrow.utils.batches import resize_batch
from regrow.utils.errors import StateError
from regrow.utils.lightning_classes import pl


class MeasuredNetwork(NamedTuple):
    """A network loaded from a checkpoint, its measurements, and its sparsity by the pruner."""

    block: dict[str, Any]
    module: pl.LightningModule
    sparsity: float = 0.0


def measure(cfg: DictConfig, checkpoint: Path, pruning: PruningCallback | None) -> MeasuredNetwork:
    """Load a checkpoint, with masks if `pruning` is given, and measure it."""
    module, data = load_network(cfg, checkpoint)
    masks, sparsity = None, 0.0
    if pruning is not None:
        pruning.attach(module, checkpoint)
        masks, sparsity = pruning.masks, pruning.sparsity
    size = cost(module, module.example_input_array, masks)
    scores = evaluate(cfg, module, data)
    judged = [scores[name] for name in (metric_of(cfg, module)[0], "loss") if name in scores]
    if not all(map(math.isfinite, judged)):
        raise StateError(
            f"{checkpoint} has {scores}: training has diverged, write a lower "
            "optimizer.lr (or finetune.lr)"
        )
    finite = {name: value if math.isfinite(value) else None for name, value in scores.items()}
    block = {**finite, "params": size.params, "macs": size.macs, "bytes": size.bytes}
    return MeasuredNetwork(block, module, sparsity)


def load_network(
    cfg: DictConfig, checkpoint: Path | dict[str, Any]
) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """Load the network of a checkpoint (a file or its content), and its data."""
    state = read_checkpoint(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    data = build_data(cfg)
    if KEY not in state:
        return build_module(cfg, data, state), data
    module = build_module(cfg, data)
    fit_shapes(module, state)
    load_weights(module, state)
    return module, data


def time_networks(
    cfg: DictConfig, dense: pl.LightningModule, pruned: pl.LightningModule
) -> Comparison:
    """Compare latencies in alternation, so that load on the machine affects both networks."""
    dtype = next(pruned.parameters()).dtype  # trainer.precision may have changed it
    dense, pruned = dense.to(dtype), pruned.to(dtype)
    example = resize_batch(dense.example_input_array, int(cfg.latency.batch))

    def convert(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    repeats = max(2, int(cfg.latency.repeats))
    return compare_latency(dense, pruned, tree_map(convert, example), repeats=repeats)
