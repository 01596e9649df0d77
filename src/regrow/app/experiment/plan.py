# SPDX-License-Identifier: MIT
"""Print what a run would do."""

from __future__ import annotations

import copy

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
    console.print(_event_table(pruning.progress.plan, steps, pruning))
    if isinstance(pruning, ChannelPruning):
        console.print(groups_table(pruning.pruner.groups, {}))
        return
    console.print(_layer_table(pruning, module))
    console.print(_cost_table(cfg, pruning, module))


def _event_table(milestones: tuple[Milestone, ...], steps: int, pruning: PruningCallback) -> Table:
    unit = pruning.session.strategy.unit
    table = Table("event", "step", "epoch", unit, title=f"{len(milestones)} events")
    rows = [
        (str(number), str(step), f"{step / steps:.2f}", f"{sparsity:.4f}")
        for number, (step, sparsity) in enumerate(milestones)
    ]
    if len(rows) > _SHOWN:
        rows = [*rows[: _SHOWN // 2], ("...", "", "", ""), *rows[-_SHOWN // 2 :]]
    for row in rows:
        table.add_row(*row)
    table.caption = repr(pruning.schedule)
    return table


def _layer_table(pruning: PruningCallback, module: nn.Module) -> Table:
    pruner = pruning.pruner
    places = positions(module, module.example_input_array)
    targets = _layer_sparsities(pruning)
    table = Table("parameter", "shape", "weights", "MACs per image", "target", title="layers")
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


def _cost_table(cfg: DictConfig, pruning: PruningCallback, module: Classifier) -> Table:
    """Return the cost of the dense network and the parts of a checkpoint at the target."""
    pruner, optimizer = pruning.pruner, _optimizer_bytes(cfg, module)
    dense = cost(module, module.example_input_array)
    sparsity = 0.0 if pruning.uses_threshold else pruning.final  # a threshold may prune nothing
    pruned = sum(
        round(pruner.layer_targets.get(target.name, sparsity) * target.parameter.numel())
        for target in pruner.targets
    )
    width = max(target.parameter.element_size() for target in pruner.targets)
    parts = {
        "masks": sum(-(-target.parameter.numel() // 8) for target in pruner.targets),
        "removed values": pruned * width if pruning.keep_removed else 0,
    }
    if snapshot := _rewind_bytes(cfg, pruning, module):
        parts["rewind snapshot"] = snapshot
    table = Table("", "dense", "at the target", title="cost")
    parameters = "by the weights" if pruning.uses_threshold else f"{dense.params - pruned:,}"
    table.add_row("parameters", f"{dense.params:,}", parameters)
    table.add_row("MACs per image", f"{dense.macs:,}", "by layer density")
    for name, size in (("weights", dense.bytes), ("optimizer state", optimizer)):
        table.add_row(name, format_size(size), format_size(size))
    total = dense.bytes + optimizer + sum(parts.values())
    for name, size in (parts | {"checkpoint": total}).items():
        table.add_row(name, "", format_size(size))
    return table


def format_size(count: int) -> str:
    """Format a number of bytes in MiB."""
    return f"{count / 2**20:.2f} MiB"


def _rewind_bytes(cfg: DictConfig, pruning: PruningCallback, module: Classifier) -> int:
    """Return the bytes of the tensors that a rewind restores."""
    rewinds = [*pruning.children, *build_callbacks(cfg, pruning)]
    parts = [part for rewind in rewinds if isinstance(rewind, Rewind) for part in rewind.parts]
    tensors = [*module.parameters(), *module.buffers()]
    sizes = {
        "weights": sum(tensor.nbytes for tensor in tensors),
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
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
