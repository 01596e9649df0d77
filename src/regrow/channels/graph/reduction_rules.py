# SPDX-License-Identifier: MIT
"""Label rules of reductions, softmax and layer norm (see `labels.Rule`).

Channels along the reduced dimension affect the result even when zeroed. Labels that vary along
other dimensions too are united within the reduced ones, which then cannot be cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from regrow.channels.graph.labels import Arguments, LabelledTensor, Labels, varying_dims
from regrow.channels.graph.product_rules import COUNTS


def layer_norm(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite the normalized dimensions with scale and shift; also RMS norm."""
    length = len(a["normalized_shape"])
    x = _run_over(labels, a["input"], range(-length, 0), "layer norm")
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            for dim in range(-length, 0):
                labels.unite_dims(x, dim, a[name], dim, "layer norm")
    return labels.value(shape, labels.relabel(x).label_axes)


def softmax(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Mark channels along the dimension as approximate: a zero becomes `exp(0)`."""
    return replace(_run_over(labels, a["self"], [a["dim"]], "softmax"), known=None)


def reduction(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Drop the labels of reduced dimensions (mean, sum, max of one tensor, variance, norm)."""
    x, given = a["self"], a.get("dim")
    if a.get("other") is not None:  # the elementwise overloads of max and min
        return labels.broadcast([x, a["other"]], shape, "maximum or minimum")
    listed = [given] if isinstance(given, int) else given
    dims = {dim % max(1, x.ndim) for dim in (listed or range(x.ndim))}
    axes = []
    for axis in _run_over(labels, x, dims, "a reduction over it").label_axes:
        if {*varying_dims(axis)} & dims:
            continue
        if len(shape) < x.ndim:
            axis = axis.reshape([s for d, s in enumerate(axis.shape) if d not in dims])
        axes.append(axis)
    return replace(labels.value(shape, axes, weight=x.weight), resizable=x.resizable)


def sort_or_cumulate(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Fix the dimension: each of its positions depends on the others."""
    axes = list[Tensor]()
    for axis in labels.relabel(a["self"]).label_axes:
        if axis.shape[a["dim"]] > 1:
            labels.fix(axis, "sorting or adding up along it")
        else:
            axes.append(axis)
    return labels.value(shape, axes)


def _run_over(labels: Labels, x: LabelledTensor, dims: Iterable[int], name: str) -> LabelledTensor:
    """Mark labels along these dimensions alone; unite those that vary along others too."""
    over = {dim % x.ndim for dim in dims}
    for axis in labels.relabel(x).label_axes:
        along = {*varying_dims(axis)}
        if along <= over:
            labels.mark_approximate(axis, COUNTS.format(name))
        elif along & over:
            labels.unite_except(axis, along - over, name)
    return labels.relabel(x)
