# SPDX-License-Identifier: MIT
"""Linear, convolution, norms.

A rule gets the labels, the operation's arguments by name and its result's shape; it unites, pins
or marks labels, and returns the result's value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from regrow.channels.graph.labels import LabelledTensor, Labels, varying
from regrow.channels.graph.product_rules import COUNTS, attention, einsum, matmul, with_slot
from regrow.channels.graph.reduction_rules import layer_norm, ordered, reduction, softmax
from regrow.channels.graph.view_rules import tie_pieces

Rule = Callable[[Labels, dict[str, Any], Sequence[int]], LabelledTensor]


def linear(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Weight `(out, in)`."""
    x, weight, bias = a["input"], a["weight"], a["bias"]
    shared = labels.unite_dims(x, -1, weight, 1, "linear")
    if shared is not None and not weight.weight:
        labels.inexact(shared, COUNTS.format("a product without weights"))
    rows = labels.labels_along(weight, 0, "linear")
    if bias is not None:
        labels.unite_dims(weight, 0, bias, 0, "linear")
    kept = [slot for slot in labels.relabel(x).label_axes if slot.shape[-1] == 1]
    return labels.value(shape, with_slot(kept, rows, -1, len(shape)), weight=False)


def convolution(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Weight `(out, in / groups, *kernel)`."""
    return _convolution(labels, a, shape, out=0)


def transposed(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Weight `(in, out / groups, *kernel)`."""
    return _convolution(labels, a, shape, out=1)


def _convolution(
    labels: Labels, a: dict[str, Any], shape: Sequence[int], out: int
) -> LabelledTensor:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    groups = a["groups"]
    channel = x.ndim - (weight.ndim - 1)
    reason = "convolution" if groups == 1 else f"convolution of {groups} groups"
    for slot in labels.relabel(x).label_axes:  # along height and width nothing can go
        if all(dim > channel for dim in varying(slot)):
            labels.pin(slot, f"{reason}: a spatial dimension")
    inputs = labels.labels_along(x, channel, reason)
    if groups == 1:
        shared = labels.unite_dims(x, channel, weight, 1 - out, reason)
        if shared is not None and not weight.weight:
            labels.inexact(shared, COUNTS.format("a product without weights"))
        outputs = labels.labels_along(weight, out, reason)
    else:
        outputs = _grouped(labels, x, inputs, weight, groups, out, reason)
    if bias is not None:
        own = labels.labels_along(bias, 0, reason)
        if own is not None and outputs is not None:
            labels.unite(own, outputs, reason)
        elif own is not None:
            labels.pin(own, reason)
    batch = [s for s in labels.relabel(x).label_axes if all(dim < channel for dim in varying(s))]
    return labels.value(shape, with_slot(batch, outputs, channel, len(shape)))


def _grouped(
    labels: Labels,
    x: LabelledTensor,
    inputs: Tensor | None,
    weight: LabelledTensor,
    groups: int,
    out: int,
    reason: str,
) -> Tensor | None:
    """Whole groups are cut where there are many, else the same channel of every group."""
    rows, columns = (labels.labels_along(weight, dim, reason) for dim in (0, 1))
    total = weight.shape[0] if out == 0 else weight.shape[1] * groups
    if out == 0:
        outputs = rows
        inner = columns
    else:  # (in, out / groups): rows are the inputs, columns repeat in every group
        if rows is not None and inputs is not None:
            labels.unite(rows, inputs, reason)
        inputs = inputs if inputs is not None else rows
        outputs, inner = None, columns
    if inputs is None or inputs.numel() % groups:
        for own in (outputs, inner):
            if own is not None:
                labels.pin(own, f"{reason}: its input has a fixed length")
        return outputs if out == 0 else None
    per = inputs.view(groups, -1)
    if groups >= per.shape[1]:  # whole groups
        labels.unite(per, per[:, :1], reason)
        if inner is not None:
            labels.pin(inner, f"{reason}: whole groups are cut, not within them")
        if outputs is not None:
            labels.unite(outputs.view(groups, -1), per[:, :1], reason)
            return outputs
        return per[:, :1].expand(groups, total // groups).reshape(-1)
    labels.unite(per, per[:1], reason)
    if out == 0:
        if inner is not None:
            labels.unite(inner, per[0], reason)
        if outputs is not None:
            labels.unite(outputs.view(groups, -1), outputs.view(groups, -1)[:1], reason)
        return outputs
    return None if inner is None else inner.repeat(groups)


def batch_norm(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Also instance norm. Statistics run over all dimensions but the channels."""
    x, channel = a["input"], min(1, a["input"].ndim - 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if a.get(name) is not None:
            labels.unite_dims(x, channel, a[name], 0, "batch norm")
    for slot in labels.relabel(x).label_axes:
        if slot.shape[channel] == 1:
            labels.inexact(slot, COUNTS.format("batch norm over it"))
    return labels.value(shape, labels.relabel(x).label_axes, weight=x.weight)


def group_norm(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Groups stay; each loses the same of its channels."""
    x, groups = a["input"], a["num_groups"]
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            labels.unite_dims(x, 1, a[name], 0, "group norm")
    for slot in labels.relabel(x).label_axes:
        if slot.shape[1] == 1 and any(size > 1 for size in slot.shape[2:]):
            labels.inexact(slot, COUNTS.format("group norm"))
    channels = labels.labels_along(x, 1, "group norm")
    if channels is not None and groups < len(channels):
        per = channels.view(groups, -1)
        labels.unite(per, per[:1], f"group norm of {groups} groups")
        labels.inexact(channels, COUNTS.format("group norm"))
    return labels.value(shape, labels.relabel(x).label_axes)


def prelu(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Slopes `(channels,)`, or one for all."""
    x, weight = a["self"], a["weight"]
    if weight.shape != (1,) and weight.ndim == 1:
        labels.unite_dims(x, 1 if x.ndim > 1 else 0, weight, 0, "prelu")
    return labels.value(shape, labels.relabel(x).label_axes)


def glu(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """One half of a dimension gates the other."""
    dim = a["dim"] % len(shape)
    tie_pieces(labels, a["self"], [shape[dim]] * 2, dim, "glu")
    halves = [
        labels.value(shape, [_part(slot, dim, start, shape[dim]) for slot in a["self"].label_axes])
        for start in (0, shape[dim])
    ]
    return labels.broadcast(halves, shape, "glu")


def channel_shuffle(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Every group loses the same of its channels."""
    channels = labels.labels_along(a["self"], 1, "channel shuffle")
    if channels is None:
        return labels.value(shape, labels.relabel(a["self"]).label_axes)
    per = channels.view(a["groups"], -1)
    labels.unite(per, per[:1], "channel shuffle")
    kept = [slot for slot in labels.relabel(a["self"]).label_axes if slot.shape[1] == 1]
    return labels.value(shape, with_slot(kept, per.t().reshape(-1), 1, len(shape)))


def _part(slot: Tensor, dim: int, start: int, size: int) -> Tensor:
    return slot.narrow(dim, start, size) if slot.shape[dim] > 1 else slot


def spatial(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Pooling and upsampling: channels go on, height and width cannot be cut."""
    x = labels.relabel(a["input"] if "input" in a else a["self"])
    slots = []
    for slot in x.label_axes:
        changed = {d for d in varying(slot) if x.shape[d] != shape[d]}
        if changed:
            labels.pin(slot, "pooling or resizing over it")
        else:
            slots.append(slot)
    return labels.value(shape, slots)


def embedding(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """Weight `(words, features)`: an index from data reads any word."""
    rows = labels.labels_along(a["weight"], 0, "embedding")
    if rows is not None:
        labels.pin(rows, "rows of an embedding")
    columns = labels.labels_along(a["weight"], 1, "embedding")
    return labels.value(shape, with_slot([], columns, -1, len(shape)))


def im2col(labels: Labels, a: dict[str, Any], shape: Sequence[int]) -> LabelledTensor:
    """`(n, c, h, w)` to `(n, c * kh * kw, places)`: every channel comes once a kernel place."""
    channels = labels.labels_along(a["self"], 1, "im2col")
    if channels is not None:
        channels = channels.repeat_interleave(shape[1] // len(channels))
    return labels.value(shape, with_slot([], channels, 1, len(shape)))


def _table(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    "linear": linear,
    **_table("conv1d conv2d conv3d convolution", convolution),
    **_table("conv_transpose1d conv_transpose2d conv_transpose3d", transposed),
    **_table("batch_norm instance_norm", batch_norm),
    **_table("layer_norm rms_norm", layer_norm),
    "group_norm": group_norm,
    "prelu": prelu,
    **_table("matmul mm bmm addmm baddbmm", matmul),
    "scaled_dot_product_attention": attention,
    **_table("softmax log_softmax _softmax _log_softmax", softmax),
    **_table(
        "mean sum amax amin max min var std var_mean std_mean norm linalg_vector_norm prod "
        "logsumexp",
        reduction,
    ),
    **_table(
        "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
        "adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d "
        "upsample_bicubic2d upsample_trilinear3d upsample_linear1d grid_sampler_2d grid_sampler "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
        spatial,
    ),
    "glu": glu,
    "channel_shuffle": channel_shuffle,
    **_table("cumsum cumprod logcumsumexp sort topk", ordered),
    "embedding": embedding,
    "im2col": im2col,
    "einsum": einsum,
}
