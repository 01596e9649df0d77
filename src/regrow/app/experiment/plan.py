# SPDX-License-Identifier: MIT
"""Print what a run would do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from regrow.app.experiment.small_checkpoint import groups_table
from regrow.app.training.build import build_callbacks, build_pruning
from regrow.app.training.classifier import Classifier
from regrow.app.training.preflight import set_up
from regrow.callbacks.channel_pruning import ChannelPruning
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.rewind import Rewind
from regrow.masks.distributions import DISTRIBUTIONS, LayerSize
from regrow.profiling.cost import cost
from regrow.profiling.macs import positions
from regrow.schedules.base import Milestone
from regrow.utils.errors import ConfigError
from regrow.utils.logging import quiet_third_party

_SHOWN = 12


def plan(cfg: DictConfig) -> None:
    """Print the resolved events, sparsity per layer, cost and size of checkpoints.

    The fit is set up and stopped before its first step, so that its errors appear here.
    """
    quiet_third_party()
    pruning = build_pruning(cfg)
    if pruning is None:
        raise ConfigError("pruning=none plans nothing: write pruning=gmp, or recipe=digits/gmp")
    module, steps = set_up(cfg, pruning)
    console = Console()
    console.print(_events(pruning.progress.plan, steps, pruning))
    if isinstance(pruning, ChannelPruning):
        console.print(groups_table(pruning.pruner.groups, {}))
        return
    console.print(_layers(pruning, module))
    console.print(_sizes(cfg, pruning, module))


def _events(milestones: tuple[Milestone, ...], steps: int, pruning: PruningCallback) -> Table:
    table = Table("event", "step", "epoch", "sparsity", title=f"{len(milestones)} events")
    for number, (step, sparsity) in enumerate(milestones):
        if _SHOWN // 2 <= number < len(milestones) - _SHOWN // 2 and len(milestones) > _SHOWN:
            if number == _SHOWN // 2:
                table.add_row("...", "", "", "")
            continue
        table.add_row(str(number), str(step), f"{step / steps:.2f}", f"{sparsity:.4f}")
    table.caption = repr(pruning.schedule)
    return table


def _layers(pruning: PruningCallback, module: nn.Module) -> Table:
    pruner = pruning.pruner
    places = positions(module, module.example_input_array)
    targets = _layer_sparsities(pruning)
    table = Table("parameter", "shape", "weights", "MACs an image", "target", title="layers")
    for target in pruner.targets:
        weights = target.parameter.numel()
        macs = weights * places.get(target.name, 0)
        shown = f"{targets[target.name]:.4f}" if target.name in targets else "ranked with the rest"
        shape = "x".join(map(str, target.parameter.shape))
        table.add_row(target.name, shape, f"{weights:,}", f"{macs:,.0f}", shown)
    for name, reason in pruner.state.selection.reasons.items():
        table.add_row(f"[dim]{name}", "", "", "", f"[dim]dense: {reason}")
    return table


def _layer_sparsities(pruning: PruningCallback) -> dict[str, float]:
    """Return the final sparsities that do not depend on the weights."""
    pruner, sparsities = pruning.pruner, dict(pruning.pruner.layer_targets)
    if pruning.method.distribution not in ("uniform", "erk"):
        return sparsities
    free = [target for target in pruner.targets if target.name not in sparsities]
    layers = [LayerSize(t.name, tuple(t.parameter.shape), t.parameter.numel()) for t in free]
    for pool in DISTRIBUTIONS[pruning.method.distribution](layers, pruning.final):
        [index] = pool.layers
        sparsities[layers[index].name] = pool.pruned / layers[index].units
    return sparsities


def _sizes(cfg: DictConfig, pruning: PruningCallback, module: Classifier) -> Table:
    """Table of the cost of the dense network and the parts of a checkpoint at the target."""
    pruner = pruning.pruner
    dense = cost(module, module.example_input_array)
    pruned = sum(
        round(pruner.layer_targets.get(target.name, pruning.final) * target.parameter.numel())
        for target in pruner.targets
    )
    width = max(target.parameter.element_size() for target in pruner.targets)
    parts = {
        "weights": dense.bytes,
        "optimizer state": _optimizer_bytes(cfg, module),
        "masks": sum(-(-target.parameter.numel() // 8) for target in pruner.targets),
        "removed values": pruned * width if pruning.keep_removed else 0,
    }
    if copied := _rewind_bytes(cfg, pruning, module):
        parts["rewind snapshot"] = copied
    table = Table("", "dense", "at the target", title="cost")
    table.add_row("parameters", f"{dense.params:,}", f"{dense.params - pruned:,}")
    table.add_row("MACs an image", f"{dense.macs:,}", "by layer density")
    for name, size in (parts | {"checkpoint": sum(parts.values())}).items():
        alike = name in ("weights", "optimizer state")
        before = f"{size / 2**20:.2f} MiB" if alike else ""
        table.add_row(name, before, f"{size / 2**20:.2f} MiB")
    return table


def _rewind_bytes(cfg: DictConfig, pruning: PruningCallback, module: Classifier) -> int:
    """Return the bytes of the tensors that a rewind restores."""
    rewinds = [*pruning.children, *build_callbacks(cfg, pruning)]
    parts = [part for rewind in rewinds if isinstance(rewind, Rewind) for part in rewind.parts]
    tensors = [*module.parameters(), *module.buffers()]
    sizes = {
        "weights": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "optimizer": _optimizer_bytes(cfg, module),
        "fresh": _optimizer_bytes(cfg, module, steps=0),
    }
    return sum(sizes.get(part, 0) for part in parts)


def _optimizer_bytes(cfg: DictConfig, module: Classifier, steps: int = 1) -> int:
    """Return the bytes of the optimizer state, from steps of a copy with zero gradients."""
    twin = copy.deepcopy(module.network)
    optimizer = module.optimizer(twin.parameters())
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(steps):
        optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type,return-value]
    return sum(_bytes(state) for state in optimizer.state.values())


def _bytes(state: Mapping[str, Any]) -> int:
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
