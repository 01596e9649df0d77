# SPDX-License-Identifier: MIT
"""Print what a run would do."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import Optimizer

from regrow.app.experiment.small_checkpoint import groups_table
from regrow.app.training.build import build_callbacks, build_pruning
from regrow.app.training.preflight import set_up
from regrow.callbacks.channel_pruning import ChannelPruning
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.summary import render_summary
from regrow.callbacks.rewind import Rewind
from regrow.profiling.cost import cost
from regrow.profiling.macs import positions
from regrow.schedules.base import Milestone
from regrow.utils.display import format_bytes
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
    module, _, optimizers, steps = set_up(cfg, pruning)
    console = Console()
    console.print(_event_table(pruning.progress.plan, steps, pruning))
    if isinstance(pruning, ChannelPruning):
        console.print(groups_table(pruning.pruner.groups, {}, {}))
        return
    macs = positions(module, module.example_input_array)
    console.print(render_summary(pruning.session, type(pruning).__name__, console.width, macs))
    console.print(_cost_table(cfg, pruning, module, optimizers))


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


def _cost_table(
    cfg: DictConfig,
    pruning: PruningCallback,
    module: nn.Module,
    optimizers: Sequence[Optimizer],
) -> Table:
    """Return the cost of the dense network and the parts of a checkpoint at the target."""
    pruner, optimizer = pruning.pruner, _optimizer_bytes(optimizers)
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
    if snapshot := _rewind_bytes(cfg, pruning, module, optimizers):
        parts["rewind snapshot"] = snapshot
    table = Table("", "dense", "at the target", title="cost")
    parameters = "by the weights" if pruning.uses_threshold else f"{dense.params - pruned:,}"
    table.add_row("parameters", f"{dense.params:,}", parameters)
    table.add_row("MACs per image", f"{dense.macs:,}", "by layer density")
    for name, size in (("weights", dense.bytes), ("optimizer state", optimizer)):
        table.add_row(name, format_bytes(size), format_bytes(size))
    total = dense.bytes + optimizer + sum(parts.values())
    for name, size in (parts | {"checkpoint": total}).items():
        table.add_row(name, "", format_bytes(size))
    return table


def _rewind_bytes(
    cfg: DictConfig,
    pruning: PruningCallback,
    module: nn.Module,
    optimizers: Sequence[Optimizer],
) -> int:
    """Return the bytes of the tensors that a rewind restores."""
    rewinds = [*pruning.children, *build_callbacks(cfg, pruning)]
    parts = [part for rewind in rewinds if isinstance(rewind, Rewind) for part in rewind.parts]
    tensors = [*module.parameters(), *module.buffers()]
    sizes = {
        "weights": sum(tensor.nbytes for tensor in tensors),
        "optimizer": _optimizer_bytes(optimizers),
        "fresh": _optimizer_bytes(optimizers, steps=0),
    }
    return sum(sizes.get(part, 0) for part in parts)


def _optimizer_bytes(optimizers: Sequence[Optimizer], steps: int = 1) -> int:
    """Return the bytes of the optimizer states, from steps of copies with zero gradients."""
    total = 0
    for optimizer in map(copy.deepcopy, optimizers):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(steps):
            optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type,return-value]
        tensors = [t for state in optimizer.state.values() for t in state.values()]
        total += sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
    return total
