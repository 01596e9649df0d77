# SPDX-License-Identifier: MIT
"""Sums, softmax, layer norm.

Channels that stand along that dimension still count where they are zeroed. Labels that vary along
others too, as heads of several places do, are tied within it: nothing of it is cut then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from regrow.channels.graph.labels import LabelledTensor, Labels, varying
from regrow.channels.graph.product_rules import COUNTS


def layer_norm(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Also RMS norm."""
    length = len(a["normalized_shape"])
    x = _run_over(labels, a["input"], range(-length, 0), "layer norm")
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            for dim in range(-length, 0):
                labels.unite_dims(x, dim, a[name], dim, "layer norm")
    return labels.value(shape, labels.relabel(x).label_axes)


def softmax(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """A zero counts as `exp(0)`."""
    return replace(_run_over(labels, a["self"], [a["dim"]], "softmax"), real=None)


def reduction(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Mean, sum, max, variance, norm: what is reduced over is gone from the labels."""
    x, given = a["self"], a.get("dim")
    listed = [given] if isinstance(given, int) else given
    dims = {dim % max(1, x.ndim) for dim in (listed or range(x.ndim))}
    slots = []
    for slot in _run_over(labels, x, dims, "a reduction over it").label_axes:
        if {*varying(slot)} & dims:
            continue
        if len(shape) < x.ndim:
            slot = slot.reshape([s for d, s in enumerate(slot.shape) if d not in dims])
        slots.append(slot)
    return replace(labels.value(shape, slots, weight=x.weight), free=x.free)


def ordered(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Sorting and cumulative sums: a place of that dimension depends on the others."""
    slots = list[Tensor]()
    for slot in labels.relabel(a["self"]).label_axes:
        if slot.shape[a["dim"]] > 1:
            labels.pin(slot, "sorting or adding up along it")
        else:
            slots.append(slot)
    return labels.value(shape, slots)


def _run_over(labels: Labels, x: LabelledTensor, dims: Iterable[int], name: str) -> LabelledTensor:
    """Marks what stands along these dimensions alone, ties what stands along others too."""
    over = {dim % x.ndim for dim in dims}
    for slot in labels.relabel(x).label_axes:
        along = {*varying(slot)}
        if along <= over:
            labels.inexact(slot, COUNTS.format(name))
        elif along & over:
            labels.fix_multiple(slot, along - over, name)
    return labels.relabel(x)
