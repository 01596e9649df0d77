# SPDX-License-Identifier: MIT
"""Regrow inspect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from regrow.app.config.initial_weights import network_weights
from regrow.app.experiment.small_checkpoint import groups_table
from regrow.app.training.build import build_data, build_module
from regrow.app.training.classifier import Classifier
from regrow.callbacks.support.checkpoint_shapes import fit_shapes
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.channels.graph.groups import groups
from regrow.io.checkpoints import KEY, read_checkpoint
from regrow.masks.masks import Masks
from regrow.profiling.cost import cost
from regrow.profiling.macs import positions
from regrow.utils.batches import two_examples


def inspect(path: Path) -> None:
    """Prints shapes, sparsities, MACs where the run's configuration lies beside, and progress.

    Raises:
        StateError: If the file is damaged.
    """
    checkpoint = read_checkpoint(path)
    state: Mapping[str, Tensor] = checkpoint.get("state_dict", checkpoint)
    console = Console()
    where = {key: checkpoint[key] for key in ("epoch", "global_step") if key in checkpoint}
    console.print(f"{path} ({path.stat().st_size / 2**20:.2f} MiB) {where or ''}")
    pruners = {
        key: value
        for key, value in checkpoint.get("callbacks", {}).items()
        if isinstance(value, dict) and isinstance(value.get("pruner"), dict)
    }
    module = _network(path)
    if module is not None:
        fit_shapes(module, checkpoint)
    if not pruners:
        console.print(_layers(state, None, None, "no masks: a dense network"))
    for key, held in pruners.items():
        masks = Masks.unpack(held["pruner"]["masks"])
        places: dict[str, float] = {}
        if module is not None:
            places = dict(positions(module, module.example_input_array))
        console.print(_layers(state, masks, places, key))
        console.print(_progress(held, masks))
        if module is not None and "cuts" in held["pruner"]:
            console.print(_channels(module, checkpoint))
    if module is not None:
        module.network.load_state_dict(network_weights(checkpoint))
        for held in pruners.values():
            masks = Masks.unpack(held["pruner"]["masks"])
            console.print(_costs(module, masks))


def _network(path: Path) -> Classifier | None:
    """The run's network, if its configuration lies in the run's folder."""
    config = path.resolve().parent.parent / ".hydra" / "config.yaml"
    if not config.is_file():
        return None
    cfg = OmegaConf.load(config)
    assert isinstance(cfg, DictConfig)
    return build_module(cfg, build_data(cfg))


def _channels(module: Classifier, checkpoint: Mapping[str, Any]) -> Table:
    """Which channels belong together in the network as it is, and how many were cut."""
    example = two_examples(module.example_input_array, module)
    plan = checkpoint.get(KEY)
    removed = ChannelCut.from_state(plan).removed if plan is not None else {}
    return groups_table(groups(module, example), removed)


def _layers(
    state: Mapping[str, Tensor], masks: Masks | None, places: Mapping[str, float] | None, title: str
) -> Table:
    table = Table("parameter", "shape", "weights", "kept", "sparsity", "MACs kept", title=title)
    for name, tensor in state.items():
        shape = "x".join(map(str, tensor.shape))
        kept, sparsity, macs = tensor.numel(), "", ""
        if masks is not None and name in masks:
            kept = int(masks[name].count_nonzero())
            sparsity = f"{1 - masks.density(name):.4f}"
        if places and name in places:
            macs = f"{kept * places[name]:,.0f}"
        table.add_row(name, shape, f"{tensor.numel():,}", f"{kept:,}", sparsity, macs)
    return table


def _progress(held: Mapping[str, Any], masks: Masks) -> str:
    progress, packed = held["progress"], held["pruner"]["masks"]["bits"].values()
    vault = held["pruner"]["removed_weights"]
    lines = [
        f"sparsity {masks.sparsity:.4f} of the prunable, target {held['pruner']['target']:.4f}"
    ]
    if "cuts" in held["pruner"]:
        lines[0] += f" of the {held['method']['of']}; cut {len(held['pruner']['cuts'])} times"
    if progress is not None:
        plan, fired = progress["plan"], progress["fired"]
        ahead = f"; next at step {plan[fired][0]}" if fired < len(plan) else ""
        lines.append(f"{fired} of {len(plan)} events have happened{ahead}")
    kept = "not kept" if vault is None else _size(vault.values())
    lines.append(f"masks: {_size(packed)}; removed values: {kept}")
    return "\n".join(lines)


def _costs(module: Classifier, masks: Masks) -> Table:
    table = Table("", "dense", "masked", title="cost")
    dense = cost(module, module.example_input_array)
    masked = cost(module, module.example_input_array, masks)
    for name in ("params", "macs", "bytes"):
        table.add_row(name, f"{getattr(dense, name):,}", f"{getattr(masked, name):,}")
    return table


def _size(tensors: Any) -> str:
    return f"{sum(t.numel() * t.element_size() for t in tensors) / 2**20:.2f} MiB"
