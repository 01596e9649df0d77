# SPDX-License-Identifier: MIT
"""Label rules of layers (see `labels.Rule`), and the table of all rules by operator name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regrow.channels.graph.labels import Arguments, LabelledTensor, Labels, Rule, varying_dims
from regrow.channels.graph.product_rules import (
    add_axis,
    attention,
    bilinear,
    einsum,
    matmul,
    vector_product,
    weight_norm,
)
from regrow.channels.graph.recurrent_rules import recurrent, recurrent_cell
from regrow.channels.graph.view_rules import move, unite_pieces


def linear(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite input features with columns; rows of `(out, in)` label the output, `(in,)` has none."""
    x, weight, bias = a["input"], a["weight"], a["bias"]
    shared = labels.unite_dims(x, -1, weight, -1, "linear")
    if not weight.weight:
        labels.mark_approximate(shared, "a product without weights")
    kept = [axis for axis in labels.axes(x) if axis.shape[-1] == 1]
    if weight.ndim == 1:
        return labels.value(shape, [axis.squeeze(-1) for axis in kept])
    rows = labels.labels_along(weight, 0, "linear")
    if bias is not None:
        labels.unite_dims(weight, 0, bias, 0, "linear")
    return labels.value(shape, add_axis(kept, rows, -1, len(shape)), weight=False)


def convolution(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite input channels with columns; rows of `(out, in / groups, ...)` label the output."""
    return _convolution(labels, a, shape, out=int(a.get("transposed", False)))


def transposed_convolution(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite input channels with rows; columns of `(in, out / groups, ...)` label the output."""
    return _convolution(labels, a, shape, out=1)


def deformable_convolution(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Fix offsets and masks of `torchvision`'s operator; each offset group loses equally many."""
    labels.fix_all([a["offset"], a["mask"]], "offsets or masks of a deformable convolution")
    channels = labels.labels_along(a["input"], 1, "deformable convolution")
    if channels is not None:
        per = channels.view(a["offset_groups"], -1)
        labels.unite(per, per[:1], f"deformable convolution of {len(per)} offset groups")
    return _convolution(labels, a, shape, out=0)


def _convolution(labels: Labels, a: Arguments, shape: Sequence[int], out: int) -> LabelledTensor:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    groups = a["groups"]
    channel = x.ndim - (weight.ndim - 1)
    reason = "convolution" if groups == 1 else f"convolution of {groups} groups"
    for axis in labels.axes(x):  # height and width cannot be cut
        if all(dim > channel for dim in varying_dims(axis)):
            labels.fix(axis, f"{reason}: a spatial dimension")
    inputs = labels.labels_along(x, channel, reason)
    if groups == 1:
        shared = labels.unite_dims(x, channel, weight, 1 - out, reason)
        if not weight.weight:
            labels.mark_approximate(shared, "a product without weights")
        outputs = labels.labels_along(weight, out, reason)
    else:
        outputs = _grouped(labels, inputs, weight, groups, out, reason)
    if bias is not None:
        bias_labels = labels.labels_along(bias, 0, reason)
        if bias_labels is not None and outputs is not None:
            labels.unite(bias_labels, outputs, reason)
        else:
            labels.fix(bias_labels, reason)
    batch = [s for s in labels.axes(x) if all(dim < channel for dim in varying_dims(s))]
    return labels.value(shape, add_axis(batch, outputs, channel, len(shape)))


def _grouped(
    labels: Labels, inputs: Tensor | None, weight: LabelledTensor, groups: int, out: int, name: str
) -> Tensor | None:
    """Unite within groups (whole groups are cut) if there are many, else across groups."""
    rows, columns = (labels.labels_along(weight, dim, name) for dim in (0, 1))
    total = weight.shape[0] if out == 0 else weight.shape[1] * groups
    outputs, inner = (rows if out == 0 else None), columns
    if out == 1:  # (in, out / groups): rows are the inputs, columns repeat in every group
        if rows is not None and inputs is not None:
            labels.unite(rows, inputs, name)
        inputs = inputs if inputs is not None else rows
    if inputs is None or inputs.numel() % groups:
        for vector in (outputs, inner):
            labels.fix(vector, f"{name}: its input has a fixed length")
        return outputs
    per = inputs.view(groups, -1)
    if groups >= per.shape[1]:  # whole groups
        labels.unite(per, per[:, :1], name)
        labels.fix(inner, f"{name}: whole groups are cut, not within them")
        if outputs is not None:
            labels.unite(outputs.view(groups, -1), per[:, :1], name)
            return outputs
        return per[:, :1].expand(groups, total // groups).reshape(-1)
    labels.unite(per, per[:1], name)
    if out == 0:
        if inner is not None:
            labels.unite(inner, per[0], name)
        if outputs is not None:
            labels.unite(outputs.view(groups, -1), outputs.view(groups, -1)[:1], name)
        return outputs
    return None if inner is None else inner.repeat(groups)


def batch_norm(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite channels with scale, shift and statistics; also instance norm."""
    x, channel = a["input"], min(1, a["input"].ndim - 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if a.get(name) is not None:
            labels.unite_dims(x, channel, a[name], 0, "batch norm")
    for axis in labels.axes(x):
        if axis.shape[channel] == 1:
            labels.mark_approximate(axis, "batch norm over it")
    return labels.value(shape, x.label_axes, weight=x.weight)


def layer_norm(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite the normalized dimensions with scale and shift; also RMS norm."""
    length = len(a["normalized_shape"])
    x = _run_over(labels, a["input"], range(-length, 0), "layer norm")
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            for dim in range(-length, 0):
                labels.unite_dims(x, dim, a[name], dim, "layer norm")
    return labels.value(shape, x.label_axes)


def group_norm(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite channels across groups: each group loses the same channels."""
    x, groups = a["input"], a["num_groups"]
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            labels.unite_dims(x, 1, a[name], 0, "group norm")
    for axis in labels.axes(x):
        if axis.shape[1] == 1 and any(size > 1 for size in axis.shape[2:]):
            labels.mark_approximate(axis, "group norm")
    channels = labels.labels_along(x, 1, "group norm")
    if channels is not None and groups < len(channels):
        per = channels.view(groups, -1)
        labels.unite(per, per[:1], f"group norm of {groups} groups")
        labels.mark_approximate(channels, "group norm")
    return labels.value(shape, x.label_axes)


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
    for axis in labels.axes(a["self"]):
        if axis.shape[a["dim"]] > 1:
            labels.fix(axis, "sorting or adding up along it")
        else:
            axes.append(axis)
    return labels.value(shape, axes)


def _run_over(labels: Labels, x: LabelledTensor, dims: Iterable[int], name: str) -> LabelledTensor:
    """Mark labels along these dimensions alone: zeroed ones affect the result.

    Those that vary along others too are united within these dimensions, which then cannot be cut.
    """
    over = {dim % x.ndim for dim in dims}
    for axis in labels.axes(x):
        along = {*varying_dims(axis)}
        if along <= over:
            labels.mark_approximate(axis, name)
        elif along & over:
            labels.unite_except(axis, along - over, name)
    return labels.relabel(x)


def prelu(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite channels with slopes `(channels,)`."""
    x, weight = a["self"], a["weight"]
    if weight.shape != (1,) and weight.ndim == 1:
        labels.unite_dims(x, 1 if x.ndim > 1 else 0, weight, 0, "prelu")
    return labels.value(shape, x.label_axes)


def glu(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite the two halves of a dimension, of which one gates the other."""
    x, dim = a["self"], a["dim"]
    unite_pieces(labels, x, [shape[dim]] * 2, dim, "glu")
    return labels.broadcast(move(labels, "chunk", torch.chunk, [x, 2, dim], {}), shape, "glu")


def channel_shuffle(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite channels across groups, and reorder them."""
    channels = labels.labels_along(a["self"], 1, "channel shuffle")
    if channels is None:
        return labels.value(shape, a["self"].label_axes)
    per = channels.view(a["groups"], -1)
    labels.unite(per, per[:1], "channel shuffle")
    kept = [axis for axis in labels.axes(a["self"]) if axis.shape[1] == 1]
    return labels.value(shape, add_axis(kept, per.t().reshape(-1), 1, len(shape)))


def spatial(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Keep the channels; fix height and width (pooling, resizing)."""
    x, kept = a["input"] if "input" in a else a["self"], []
    for axis in labels.axes(x):
        if any(x.shape[d] != shape[d] for d in varying_dims(axis)):
            labels.fix(axis, "pooling or resizing over it")
        else:
            kept.append(axis)
    return labels.value(shape, kept)


def embedding(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Fix the rows of `(words, features)`, which the input indexes; columns label the output."""
    labels.fix(labels.labels_along(a["weight"], 0, "embedding"), "rows of an embedding")
    columns = labels.labels_along(a["weight"], 1, "embedding")
    return labels.value(shape, add_axis([], columns, -1, len(shape)))


def im2col(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Repeat channels: `(n, c, h, w)` to `(n, c * kh * kw, positions)`."""
    channels = labels.labels_along(a["self"], 1, "im2col")
    if channels is not None:
        channels = channels.repeat_interleave(shape[1] // len(channels))
    return labels.value(shape, add_axis([], channels, 1, len(shape)))


def roi_pool(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Keep the channels of `(n, c, h, w)` in `(regions, c, height, width)`."""
    channels = labels.labels_along(a["input"], 1, "pooling of regions")
    labels.fix_all([a["rois"]], "regions that are pooled")
    return labels.value(shape, add_axis([], channels, 1, len(shape)))


def sample_grid(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Read `(n, c, *sizes)` at places `(n, *out, d)`: the result is `(n, c, *out)`."""
    x, grid = a["input"], a["grid"]
    batch = labels.unite_dims(x, 0, grid, 0, "sampling at places")
    channels = labels.labels_along(x, 1, "sampling at places")
    axes = add_axis(add_axis([], batch, 0, x.ndim), channels, 1, x.ndim)
    for dim in range(2, x.ndim):
        places = labels.labels_along(grid, dim - 1, "sampling at places")
        axes = add_axis(axes, places, dim, x.ndim)
    coordinates = labels.labels_along(grid, -1, "sampling at places")
    sizes = [labels.labels_along(x, dim, "sampling at places") for dim in range(2, x.ndim)]
    for vector in (coordinates, *sizes):
        labels.fix(vector, "sampling at places: a spatial dimension")
    return labels.value(shape, axes)


def gather(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Choose along one dimension; unite tensor and index along the others, if all are read."""
    x, index = a["self"], a["index" if "index" in a else "indices"]
    along, axes = a["dim"] % x.ndim, list[Tensor]()
    for d in range(x.ndim):
        if d != along and x.shape[d] == shape[d]:
            axes = add_axis(axes, labels.unite_dims(x, d, index, d, "gather"), d, x.ndim)
            continue
        for value in (x, index):
            labels.fix(labels.labels_along(value, d, "gather"), "gather along it")
    return labels.value(shape, axes)


def index_put(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite the labels of a tensor with those of values that are written at some of its rows."""
    x, values, indices = a["self"], a["values"], a["indices"]
    rows = len(indices) == 1 and isinstance(indices[0], LabelledTensor) and indices[0].ndim == 1
    if not rows or values.ndim != x.ndim or x.varies(0) or values.varies(0):
        labels.fix_all([x, values], "values written at some positions")
        return labels.value(shape, x.label_axes)
    axes = list[Tensor]()
    for dim in range(1, x.ndim):
        axes = add_axis(axes, labels.unite_dims(x, dim, values, dim, "index_put"), dim, x.ndim)
    return labels.value(shape, axes)


_OPERATORS: dict[Rule, str] = {
    linear: "linear",
    convolution: "conv1d conv2d conv3d convolution",
    deformable_convolution: "deform_conv2d",
    transposed_convolution: "conv_transpose1d conv_transpose2d conv_transpose3d",
    batch_norm: "batch_norm instance_norm",
    layer_norm: "layer_norm rms_norm",
    group_norm: "group_norm",
    prelu: "prelu",
    matmul: "matmul mm bmm addmm baddbmm",
    attention: "scaled_dot_product_attention",
    softmax: "softmax log_softmax _softmax _log_softmax",
    reduction: "mean sum amax amin max min var std var_mean std_mean norm linalg_vector_norm prod "
    "logsumexp",
    spatial: "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d "
    "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d "
    "upsample_trilinear3d upsample_linear1d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    sample_grid: "grid_sampler grid_sampler_2d grid_sampler_3d",
    gather: "gather take_along_dim",
    glu: "glu",
    channel_shuffle: "channel_shuffle",
    sort_or_cumulate: "cumsum cumprod logcumsumexp sort topk",
    embedding: "embedding",
    im2col: "im2col",
    roi_pool: "roi_align roi_pool",
    index_put: "index_put",
    einsum: "einsum",
    bilinear: "bilinear",
    vector_product: "mv dot vdot",
    weight_norm: "_weight_norm",
    recurrent: "lstm gru rnn_tanh rnn_relu",
    recurrent_cell: "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
}
RULES = {name: rule for rule, names in _OPERATORS.items() for name in names.split()}
