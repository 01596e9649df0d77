# SPDX-License-Identifier: MIT
"""Save the compacted network of a run with pruned channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table

from regrow.app.experiment.evaluate import load_network
from regrow.callbacks.channel_pruning import ChannelPruning
from regrow.channels.graph.groups import Group
from regrow.io.checkpoints import KEY, read_checkpoint
from regrow.io.files import write_atomic
from regrow.utils.errors import StateError, join_limited

NAME = "small.ckpt"
_TRAINING_KEYS = ("optimizer_states", "lr_schedulers", "loops")


def small_checkpoint(cfg: DictConfig, checkpoint: Path, pruning: ChannelPruning) -> Path:
    """Remove the masked channels of a checkpoint's network and save it beside the checkpoint.

    `pruning` must be new; it is attached to the loaded model. Returns `checkpoint` if nothing can
    be removed.
    """
    module, _ = load_network(cfg, checkpoint)
    pruning.attach(module, checkpoint)
    if pruning.compact_at is None:
        return checkpoint
    try:
        plan = pruning.compact()
    except StateError as error:
        print(f"not compacted: {error}")
        return checkpoint
    if plan is None:  # compacted during training
        return checkpoint
    saved = {k: v for k, v in read_checkpoint(checkpoint).items() if k not in _TRAINING_KEYS}
    saved["state_dict"] = module.state_dict()
    saved["callbacks"] = saved["callbacks"] | {pruning.state_key: pruning.state_dict()}
    saved[KEY] = pruning.plan.state_dict()
    path = checkpoint.with_name(NAME)
    write_atomic(path, lambda file: torch.save(saved, file))
    return path


def groups_table(
    groups: Sequence[Group], cut: Mapping[str, int], masked: Mapping[str, int]
) -> Table:
    """Return a table of channel groups: members, channels masked or cut, and why some stay."""
    columns = {name: counts for name, counts in (("masked", masked), ("cut", cut)) if counts}
    table = Table("group", "channels", *columns, "members", "remarks", title="channels")
    for group in groups:
        shown = join_limited(f"{name}[{dim}]" for name, dim in group.members)
        remarks = [f"not prunable: {group.fixed_reason}"] if group.fixed_reason else []
        remarks += [f"approximate: {reason}" for reason in group.approximate_reasons]
        less = [str(counts.get(group.name, 0)) for counts in columns.values()]
        size = str(group.size + cut.get(group.name, 0))
        table.add_row(group.name, size, *less, f"[dim]{shown}", "; ".join(remarks))
    return table


def summarize_channels(pruning: ChannelPruning, dense_params: int) -> dict[str, Any]:
    """Return the fields of a result for a network with removed channels."""
    pruner = pruning.pruner
    params = sum(parameter.numel() for parameter in pruner.model.parameters())
    shapes = pruner.plan.shapes
    gone = {
        name: 1 - parameter.numel() / max(1, torch.Size(shapes.get(name, parameter.shape)).numel())
        for name, parameter in pruner.model.named_parameters()
        if parameter.ndim > 1
    }
    not_prunable = {group.name: group.fixed_reason for group in pruner.groups if group.fixed_reason}
    return {
        "of": pruner.config.of,
        "sparsity": pruner.sparsity,
        "sparsity_total": 1 - params / dense_params,
        "layers": gone,
        "excluded": not_prunable | dict(pruner.state.selection.reasons),
        "channels": {"removed": dict(pruner.plan.removed), "error": pruner.plan.error},
    }
