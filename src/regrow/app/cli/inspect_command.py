# SPDX-License-Identifier: MIT
"""Run `regrow inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from regrow.app.experiment.evaluate import load_network
from regrow.app.experiment.load_run import config_file, run_config, saved_pruners
from regrow.app.experiment.small_checkpoint import groups_table
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.channels.graph.groups import groups
from regrow.io.checkpoints import KEY, read_checkpoint
from regrow.io.safetensors import SUFFIX, read_tensors
from regrow.masks.masks import Masks
from regrow.profiling.cost import cost
from regrow.profiling.macs import positions
from regrow.utils.batches import two_examples
from regrow.utils.display import format_bytes, shorten_column
from regrow.utils.errors import StateError
from regrow.utils.lightning_classes import pl


def inspect(path: Path) -> None:
    """Print shapes, zeros, sparsities and progress of a checkpoint, and MACs if it is of a run.

    It may be a checkpoint of Lightning, or any file of named tensors.
    """
    checkpoint = read_tensors(path) if path.suffix == SUFFIX else read_checkpoint(path)
    state = _find_weights(checkpoint) if isinstance(checkpoint, Mapping) else {}
    if not state:
        raise StateError(f"{path} has no tensors by name: write the path of a checkpoint")
    console = Console()
    times = {"epoch": "epoch", "global_step": "step"}
    when = [f"{word} {checkpoint[key]}" for key, word in times.items() if key in checkpoint]
    console.print(f"{path} ({', '.join([format_bytes(path.stat().st_size), *when])})")
    pruners = saved_pruners(checkpoint)
    module, macs = None, dict[str, float]()
    if config_file(path).is_file():
        module, _ = load_network(run_config(path), checkpoint)
        macs = positions(module, module.example_input_array)
    if not pruners:
        console.print(f"no masks; {_describe_zeros(state)}")
        console.print(_layer_table(state, None, {}, "", console.width))
    for key, saved in pruners.items():
        masks = Masks.unpack(saved["pruner"]["masks"])
        console.print(_layer_table(state, masks, macs, key, console.width))
        console.print(_describe_progress(saved, masks))
        if module is not None and "cuts" in saved["pruner"]:
            console.print(_channel_table(module, checkpoint))
    if module is not None:
        for saved in pruners.values():
            console.print(_cost_table(module, Masks.unpack(saved["pruner"]["masks"])))


def _find_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights in a checkpoint of any training code: the mapping with most tensors.

    Weights under `torch.nn.utils.prune` are multiplied by their masks.
    """
    inner = [checkpoint.get("state_dict"), checkpoint, *checkpoint.values()]
    named = [
        {str(key): value for key, value in each.items() if isinstance(value, Tensor)}
        for each in inner
        if isinstance(each, Mapping)
    ]
    lightning = isinstance(checkpoint.get("state_dict"), Mapping)
    weights = named[0] if lightning else max(named, key=len)
    for name in [key.removesuffix("_mask") for key in weights if key.endswith("_mask")]:
        if f"{name}_orig" in weights:
            weights[name] = weights.pop(f"{name}_orig") * weights.pop(f"{name}_mask")
    return weights


def _count_zeros(tensor: Tensor) -> int | None:
    """Count the zeros of the weights of a layer; None for other tensors."""
    weights = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.int8
    if not weights or tensor.dim() < 2 or tensor.is_meta:
        return None
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.float() if tensor.itemsize == 1 else tensor
    return tensor.numel() - int(tensor.count_nonzero())


def _describe_zeros(state: Mapping[str, Tensor]) -> str:
    zeros = {name: count for name in state if (count := _count_zeros(state[name])) is not None}
    count, total = sum(zeros.values()), sum(state[name].numel() for name in zeros)
    return f"{count:,} of {total:,} weights ({count / max(1, total):.1%}) are exactly zero"


def _channel_table(module: pl.LightningModule, checkpoint: Mapping[str, Any]) -> Table:
    """Return the channel groups of the network, with the numbers of masked and cut channels."""
    example = two_examples(module.example_input_array, module)
    plan = checkpoint.get(KEY)
    cut = ChannelCut.from_state(plan).removed if plan is not None else {}
    saved = [
        state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, Mapping)
    ]
    states = [state.get("pruner") for state in saved]
    masked = {n: len(c) for state in states if state for n, c in state.get("removed", {}).items()}
    return groups_table(groups(module, example), cut, masked)


def _layer_table(
    state: Mapping[str, Tensor],
    masks: Masks | None,
    macs: Mapping[str, float],
    title: str,
    width: int,
) -> Table:
    heads = ["parameter", "shape", "weights", "zeros", "kept", "sparsity", "MACs kept"]
    rows = []
    for name, tensor in state.items():
        shape = "x".join(map(str, tensor.shape))
        kept = sparsity = used = ""
        if masks is not None:
            count = int(masks[name].count_nonzero()) if name in masks else tensor.numel()
            kept = f"{count:,}"
            sparsity = f"{1 - masks.density(name):.4f}" if name in masks else ""
            used = f"{count * macs[name]:,.0f}" if name in macs else ""
        zeros = _count_zeros(tensor)
        shown = "" if zeros is None else f"{zeros:,}"
        rows.append([name, shape, f"{tensor.numel():,}", shown, kept, sparsity, used])
    used_columns = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    heads = [heads[i] for i in used_columns]
    table = Table(title=title or None)
    for head in heads:
        table.add_column(head, justify="left" if head == "parameter" else "right", overflow="fold")
    for row in shorten_column([[row[i] for i in used_columns] for row in rows], heads, width):
        table.add_row(*row)
    return table


def _describe_progress(saved: Mapping[str, Any], masks: Masks) -> str:
    pruner, progress = saved["pruner"], saved["progress"]
    lines = [f"sparsity {masks.sparsity:.4f} of the prunable, target {pruner['target']:.4f}"]
    if "cuts" in pruner:
        lines[0] += f" of the {saved['config']['of']}; cut {len(pruner['cuts'])} times"
    if progress is not None:
        plan, fired = progress["plan"], progress["fired"]
        ahead = f"; next at step {plan[fired][0]}" if fired < len(plan) else ""
        lines.append(f"{fired} of {len(plan)} events have happened{ahead}")
    removed = pruner["removed_weights"]
    kept = "not kept" if removed is None else format_bytes(sum(v.nbytes for v in removed.values()))
    masks_size = format_bytes(sum(bits.nbytes for bits in pruner["masks"]["bits"].values()))
    lines.append(f"masks: {masks_size}; removed values: {kept}")
    return "\n".join(lines)


def _cost_table(module: pl.LightningModule, masks: Masks) -> Table:
    table = Table("", "dense", "masked", title="cost")
    dense = cost(module, module.example_input_array)
    masked = cost(module, module.example_input_array, masks)
    for name in ("params", "macs", "bytes"):
        table.add_row(name, f"{getattr(dense, name):,}", f"{getattr(masked, name):,}")
    return table
