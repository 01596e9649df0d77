# SPDX-License-Identifier: MIT
"""Label rules of matrix products, attention and einsum (see `labels.Rule`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from regrow.channels.graph.labels import Arguments, LabelledTensor, Labels, make_axis, varying_dims


def matmul(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite the dimension that is summed; also `mm`, `bmm`, `addmm` and `baddbmm`."""
    added = "mat1" in a or "batch1" in a
    left = a["mat1"] if "mat1" in a else a["batch1"] if "batch1" in a else a["self"]
    right = a["mat2"] if "mat2" in a else a["batch2"] if "batch2" in a else a["other"]
    if left.ndim < 2 or right.ndim < 2:
        labels.fix_all([left, right], "matmul with a vector")
        return LabelledTensor(tuple(shape))
    left, right = _heads(labels, left), _heads(labels, right)
    shared = labels.unite_dims(left, -1, right, -2, "matmul")
    if not (left.weight or right.weight):
        labels.mark_approximate(shared, "a product without weights")
    value = _product(labels, [left, right], shape, "matmul")
    return labels.broadcast([value, a["self"]], shape, "addmm") if added else value


def attention(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite e and m of query `(..., n, e)`, key `(..., m, e)` and value `(..., m, v)`."""
    query, key, value = (_heads(labels, a[name]) for name in ("query", "key", "value"))
    if a.get("enable_gqa"):
        key, value = (_repeated(labels, v, query.shape[-3]) for v in (key, value))
    shared = labels.unite_dims(query, -1, key, -1, "attention")
    labels.mark_approximate(shared, "attention's scale")
    length = labels.unite_dims(key, -2, value, -2, "attention")
    labels.mark_approximate(length, "attention's softmax")
    result = _product(labels, [query, key, value], shape, "attention")
    mask = a.get("attn_mask")
    if mask is not None:
        scores = [axis for axis in result.label_axes if axis.shape[-1] == 1]
        weights = labels.value((*shape[:-1], key.shape[-2]), scores)
        labels.broadcast([weights, mask], weights.shape, "attention's mask")
    return labels.relabel(result)


def vector_product(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite the dimension that is summed over: `mv` of `(n, m)` and `(m,)`, `dot` of `(m,)`."""
    left = a["self"]
    right = next(a[name] for name in ("vec", "tensor", "other") if name in a)
    shared = labels.unite_dims(left, -1, right, 0, "a product with a vector")
    if not (left.weight or right.weight):
        labels.mark_approximate(shared, "a product without weights")
    rows = labels.labels_along(left, 0, "a product with a vector") if left.ndim > 1 else None
    axes = add_axis([], rows, 0, len(shape))
    return labels.value(shape, axes, weight=left.weight and right.weight)


def bilinear(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite features of both inputs with columns; rows of `(out, in1, in2)` label the output."""
    weight, rest = a["weight"], []
    for dim in (1, 2):
        x = a[f"input{dim}"]
        labels.unite_dims(x, -1, weight, dim, "bilinear")
        kept = [axis for axis in labels.axes(x) if axis.shape[-1] == 1]
        rest.append(labels.value((*shape[:-1], 1), kept))
    if a["bias"] is not None:
        labels.unite_dims(weight, 0, a["bias"], 0, "bilinear")
    rows = labels.labels_along(weight, 0, "bilinear")
    merged = labels.broadcast(rest, (*shape[:-1], 1), "bilinear")
    return labels.value(shape, add_axis(merged.label_axes, rows, -1, len(shape)))


def weight_norm(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite the slices of `v` that are normalised with their lengths `g`; -1: one length."""
    if a["dim"] != -1:
        labels.unite_dims(a["v"], a["dim"], a["g"], a["dim"], "weight norm")
    return labels.value(shape, a["v"].label_axes, weight=True)


def einsum(labels: Labels, a: Arguments, shape: Sequence[int]) -> LabelledTensor:
    """Unite all dimensions of one letter."""
    values: list[LabelledTensor] = a["tensors"]
    names, result = _letters(a["equation"], values)
    if any(len({*n}) < len(n) for n in names):
        labels.fix_all(values, f"einsum {a['equation']}")
        return LabelledTensor(tuple(shape))
    outside = {letter for letter in result if all(letter in n for n in names)}  # batch: heads
    for name, value in zip(names, values, strict=True):
        _unite_inner(labels, value, [name.index(letter) for letter in outside], "einsum")
    axes = []
    for letter in dict.fromkeys("".join(names)):
        having = [(n.index(letter), v) for n, v in zip(names, values, strict=True) if letter in n]
        shared: Tensor | None = labels.labels_along(having[0][1], having[0][0], "einsum")
        for dim, value in having[1:]:
            united = labels.unite_dims(having[0][1], having[0][0], value, dim, "einsum")
            shared = united if shared is None else shared
        if shared is None:
            continue
        if letter in result:
            axes.append(make_axis(shared, result.index(letter), len(shape)))
        elif not any(v.weight for _, v in having):
            labels.mark_approximate(shared, "a product without weights")
    return labels.value(shape, axes)


def _letters(equation: str, values: Sequence[LabelledTensor]) -> tuple[list[str], str]:
    """Return one letter for each dimension of each tensor, and of the result.

    Example:
        >>> _letters("...i,io", [LabelledTensor((2, 3, 4)), LabelledTensor((4, 5))])
        (['YZi', 'io'], 'YZo')
    """
    terms, arrow, result = equation.replace(" ", "").partition("->")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    pairs = [*zip(terms.split(","), values, strict=True)]
    counts = [value.ndim - len(t.replace("...", "")) if "." in t else 0 for t, value in pairs]
    dots = ["".join(spare[len(spare) - count :]) for count in counts]
    every = max(dots, key=len)
    names = [term.replace("...", dot) for (term, _), dot in zip(pairs, dots, strict=True)]
    if not arrow:  # letters that occur once, sorted
        once = sorted({c for c in terms if c.isalpha() and terms.count(c) == 1})
        return names, every + "".join(once)
    return names, result.replace("...", every)


def _repeated(labels: Labels, value: LabelledTensor, heads: int) -> LabelledTensor:
    """Repeat key or value heads to the number of query heads (grouped-query attention)."""
    times = heads // value.shape[-3]
    shape = (*value.shape[:-3], heads, *value.shape[-2:])
    axes = [s.repeat_interleave(times, -3) if s.shape[-3] > 1 else s for s in value.label_axes]
    return labels.value(shape, axes)


def _heads(labels: Labels, value: LabelledTensor) -> LabelledTensor:
    """Unite within the matrix where labels vary over batch dimensions too: heads remain."""
    _unite_inner(labels, value, range(value.ndim - 2), "attention heads")
    return labels.relabel(value)


def _unite_inner(labels: Labels, value: LabelledTensor, outer: Iterable[int], name: str) -> None:
    """Unite all but the outer dimensions where labels vary over those too."""
    for axis in labels.axes(value):
        dims = varying_dims(axis)
        kept = {*dims}.intersection(outer)
        if kept and len(dims) > 1:
            labels.unite_except(axis, kept, name)


def _product(
    labels: Labels, sides: Sequence[LabelledTensor], shape: Sequence[int], name: str
) -> LabelledTensor:
    """Label a product: batch dimensions united, rows of the first side, columns of the last."""
    batches = []
    for value in sides:
        outer = [s for s in labels.axes(value) if s.shape[-2:] == (1, 1)]
        batches.append(labels.value((*value.shape[:-2], 1, 1), outer))
    merged = labels.broadcast(batches, (*shape[:-2], 1, 1), name)
    rows = labels.labels_along(sides[0], -2, name)
    columns = labels.labels_along(sides[-1], -1, name)
    axes = add_axis(add_axis(merged.label_axes, rows, -2, len(shape)), columns, -1, len(shape))
    return labels.value(shape, axes)


def add_axis(axes: Sequence[Tensor], vector: Tensor | None, dim: int, ndim: int) -> list[Tensor]:
    """Append the labels of a dimension, where there are any."""
    return [*axes] if vector is None else [*axes, make_axis(vector, dim, ndim)]
