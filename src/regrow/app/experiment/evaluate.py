# SPDX-License-Identifier: MIT
"""Measure accuracy, size and speed of a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from regrow.app.config.initial_weights import network_weights
from regrow.app.data.base import DataModule
from regrow.app.experiment.result import Measurements
from regrow.app.training.build import QUIET, build_data, build_module
from regrow.app.training.classifier import Classifier
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.support.checkpoint_shapes import fit_shapes
from regrow.io.checkpoints import KEY, read_checkpoint
from regrow.profiling.cost import cost
from regrow.profiling.latency import Latency, latency
from regrow.utils.errors import StateError
from regrow.utils.lightning_classes import pl

_ROUNDS = 5  # of timing; the median round is reported


class MeasuredNetwork(NamedTuple):
    """A network loaded from a checkpoint, its measurements, and its sparsity by the pruner."""

    block: Measurements
    module: Classifier
    sparsity: float = 0.0


def measure(cfg: DictConfig, checkpoint: Path, pruning: PruningCallback | None) -> MeasuredNetwork:
    """Load a checkpoint, with masks if `pruning` is given, and measure it.

    Raises:
        StateError: If accuracy or loss is not finite.
    """
    module, data = load_network(cfg, checkpoint)
    masks, sparsity = None, 0.0
    if pruning is not None:
        pruning.attach(module, checkpoint)
        masks, sparsity = pruning.masks, pruning.sparsity
    size = cost(module, module.example_input_array, masks)
    scores = evaluate(cfg, module, data)
    if not all(math.isfinite(value) for value in scores.values()):
        raise StateError(
            f"{checkpoint} has {scores} on the test set: training has diverged, write a lower "
            "optimizer.lr (or finetune.lr)"
        )
    block: Any = {**scores, "params": size.params, "macs": size.macs, "bytes": size.bytes}
    return MeasuredNetwork(block, module, sparsity)


def load_network(
    cfg: DictConfig, checkpoint: Path | dict[str, Any]
) -> tuple[Classifier, DataModule]:
    """Load the network of a checkpoint (a file or its content), and its data."""
    state = read_checkpoint(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    data = build_data(cfg)
    if KEY not in state:
        return build_module(cfg, data, network_weights(state)), data
    module = build_module(cfg, data)
    fit_shapes(module, state)
    module.network.load_state_dict(network_weights(state))
    return module, data


def evaluate(cfg: DictConfig, module: Classifier, data: DataModule) -> dict[str, float]:
    """Compute accuracy (a fraction) and loss on the test set."""
    trainer = pl.Trainer(
        accelerator=cfg.trainer.get("accelerator", "auto"),
        devices=1,
        precision=cfg.trainer.get("precision"),
        **QUIET,
    )
    [scores] = trainer.test(module, datamodule=data, verbose=False)
    return {name.removeprefix("test/"): float(value) for name, value in scores.items()}


def time_networks(cfg: DictConfig, *modules: Classifier) -> list[Latency]:
    """Measure latencies in alternation, so that load on the machine affects all networks."""
    shape = modules[0].example_input_array
    assert isinstance(shape, torch.Tensor)
    dtype = next(modules[-1].parameters()).dtype  # trainer.precision may have changed it
    images = shape.new_zeros(int(cfg.latency.batch), *shape.shape[1:], dtype=dtype)
    modules = tuple(module.to(dtype) for module in modules)
    repeats = max(2, int(cfg.latency.repeats) // _ROUNDS)
    rounds = [[latency(m, images, repeats=repeats) for m in modules] for _ in range(_ROUNDS)]
    return [
        sorted(times, key=lambda time: time.median_ms)[_ROUNDS // 2]
        for times in zip(*rounds, strict=True)
    ]
