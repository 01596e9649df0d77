# SPDX-License-Identifier: MIT
"""Module attributes that hold sizes.

Every view and split of the traced network says which sizes it had, and labels say which it has
after a cut; an attribute of the module whose forward ran it, that equals an old size, gets the new
one. What this guesses is verified by running the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from regrow.channels.cut.surgery import KeptIndices, UndoLog, own_sizes
from regrow.channels.graph.interpreter import Site
from regrow.channels.graph.labels import Labels, varying
from regrow.channels.graph.trace import Trace
from regrow.utils.names import modules


def gone(traced: Trace, kept: KeptIndices) -> torch.Tensor:
    """Which classes of labels a cut removes, as a bool vector over labels."""
    labels = traced.labels
    removed = torch.zeros(len(labels), dtype=torch.bool)
    for number, (name, dim) in enumerate(labels.owners):
        keep = kept.get(name, {}).get(dim)
        if keep is not None:
            start = labels.starts[number]
            removed[labels.find(torch.arange(start, start + len(keep)))[~keep]] = True
    return removed


def new_shape(labels: Labels, site: Site, removed: torch.Tensor) -> tuple[int, ...]:
    """The shape that a site has after a cut."""
    shape = list(site.shape)
    for slot in site.slots:
        slot = labels.compact(slot)
        left = ~removed[labels.find(slot)]
        for dim in varying(slot):
            others = [d for d in range(left.ndim) if d != dim]
            shape[dim] = int(left.amax(others).sum() if others else left.sum())
    return tuple(shape)


def size_changes(traced: Trace, kept: KeptIndices) -> dict[str, dict[int, int]]:
    """By module: the sizes that its code has seen, and what they become, where that is one size."""
    removed, seen = gone(traced, kept), dict[str, dict[int, set[int]]]()
    for site in traced.sites:
        after = new_shape(traced.labels, site, removed)
        for old, new in zip(site.shape, after, strict=True):
            seen.setdefault(site.module, {}).setdefault(old, set()).add(new)
    found = {}
    for module, sizes in seen.items():
        moved = {old: news - {old} for old, news in sizes.items()}
        found[module] = {old: news.pop() for old, news in moved.items() if len(news) == 1}
    return {module: sizes for module, sizes in found.items() if sizes}


def set_sizes(
    model: nn.Module,
    sizes: dict[str, dict[int, int]],
    undo: UndoLog,
    only: Iterable[str] | None = None,
) -> list[str]:
    """Gives modules their new sizes; returns what was set."""
    done, known = [], modules(model)
    for path, mapping in sizes.items():
        if only is not None and path not in only:
            continue
        module = known.get(path)
        if module is None or own_sizes(module):  # it has been told
            continue
        for name, value in vars(module).items():
            if name.startswith("_") or name == "training":
                continue
            new = _mapped(value, mapping)
            if new is not None:
                done.append((path, module, name, new))
    for _, module, name, new in done:
        undo.set(module, name, new)
    return [f"{path}.{name}" if path else name for path, _, name, _ in done]


def _mapped(value: Any, mapping: dict[int, int]) -> Any:
    """The value with its sizes replaced; None where nothing changes."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return mapping.get(value)
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        new = type(value)(mapping.get(item, item) for item in value)
        return None if new == value else new
    return None
