# SPDX-License-Identifier: MIT
"""Update module attributes that hold sizes, such as a number of heads.

Labels tell the sizes of each traced view and split before and after a cut. An attribute of the
module that ran it is set to the new size if it equals the old one; `verify` runs the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from regrow.channels.cut.surgery import KeptIndices, UndoLog, sizes_from_tensors
from regrow.channels.graph.interpreter import Site
from regrow.channels.graph.labels import Labels, varying_dims
from regrow.channels.graph.trace import Trace
from regrow.utils.names import modules


def removed_labels(traced: Trace, kept: KeptIndices) -> torch.Tensor:
    """Return which classes of labels a cut removes, as a bool vector over labels."""
    labels = traced.labels
    removed = torch.zeros(len(labels), dtype=torch.bool)
    for number, (name, dim) in enumerate(labels.owners):
        keep = kept.get(name, {}).get(dim)
        if keep is not None:
            start = labels.starts[number]
            removed[labels.find(torch.arange(start, start + len(keep)))[~keep]] = True
    return removed


def shape_after_cut(labels: Labels, site: Site, removed: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a call's result after a cut."""
    shape = list(site.shape)
    for axis in site.label_axes:
        axis = labels.compact(axis)
        left = ~removed[labels.find(axis)]
        for dim in varying_dims(axis):
            others = [d for d in range(left.ndim) if d != dim]
            shape[dim] = int(left.amax(others).sum() if others else left.sum())
    return tuple(shape)


def size_changes(traced: Trace, kept: KeptIndices) -> dict[str, dict[int, int]]:
    """Map old to new sizes for each module path, where the new size is unambiguous."""
    removed, seen = removed_labels(traced, kept), dict[str, dict[int, set[int]]]()
    for site in traced.sites:
        after = shape_after_cut(traced.labels, site, removed)
        for old, new in zip(site.shape, after, strict=True):
            seen.setdefault(site.module, {}).setdefault(old, set()).add(new)
    changes = {}
    for module, sizes in seen.items():
        moved = {old: new - {old} for old, new in sizes.items()}
        changes[module] = {old: new.pop() for old, new in moved.items() if len(new) == 1}
    return {module: sizes for module, sizes in changes.items() if sizes}


def set_sizes(model: nn.Module, sizes: dict[str, dict[int, int]], undo: UndoLog) -> None:
    """Set attributes of modules to their new sizes."""
    by_path = modules(model)
    for path, mapping in sizes.items():
        module = by_path.get(path)
        if module is None or sizes_from_tensors(module):  # a layer, updated already
            continue
        values = {name: v for name, v in vars(module).items() if name != "training"}
        if hasattr(values.get("config"), "__dict__"):  # as in the modules of transformers
            values |= {f"config.{name}": v for name, v in vars(values["config"]).items()}
        for name, value in values.items():
            new = None if name.startswith("_") else _replace_sizes(value, mapping)
            if new is not None:
                undo.set(module, name, new)


def _replace_sizes(value: Any, mapping: dict[int, int]) -> Any:
    """Return the value with its sizes replaced, or None if nothing changes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return mapping.get(value)
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        new = type(value)(mapping.get(item, item) for item in value)
        return None if new == value else new
    return None
