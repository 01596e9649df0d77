# SPDX-License-Identifier: MIT
"""Labels after views, splits, concatenation and padding.

`view`, `permute` or `roll` need no rule: the operation itself is run on the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regrow.channels.graph.labels import FIXED, LabelledTensor, Labels, make_axis, varying_dims
from regrow.channels.graph.operations import REPEATS, VIEWS


def move(labels: Labels, name: str, target: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """Run an operation of `MOVES` on the labels of its first argument."""
    first: LabelledTensor = args[0]
    if name.endswith("_as"):  # uses only the other shape
        args = [first, args[1].shape]
    rest = [_numbers(labels, first, arg, name) for arg in args[1:]]
    kwargs = {key: _numbers(labels, first, arg, name) for key, arg in kwargs.items()}

    def run(tensor: Tensor) -> Any:
        if name in VIEWS:
            return tensor.reshape(rest[0])
        return target(tensor, *rest, **kwargs)

    blank = run(torch.empty(first.shape, dtype=torch.int64, device="meta"))
    known = None if first.known is None else run(first.known)
    moved = [run(axis.expand(first.shape)) for axis in labels.axes(first)]
    if name in REPEATS and not (first.label_axes or first.resizable or known is not None):
        before = (1,) * (blank.ndim - first.ndim) + first.shape
        moved = labels.copies(blank.shape, [d for d, size in enumerate(before) if size == 1])

    def result(shape: Sequence[int], axes: Sequence[Tensor], known: Tensor | None) -> Any:
        value = labels.value(shape, axes, weight=first.weight, are_classes=True)
        return replace(value, known=known, resizable=first.resizable)

    if isinstance(blank, Tensor):
        return result(blank.shape, moved, known)
    return [
        result(piece.shape, [axes[i] for axes in moved], None if known is None else known[i])
        for i, piece in enumerate(blank)
    ]


def _numbers(labels: Labels, first: LabelledTensor, arg: Any, name: str) -> Any:
    """Return an argument as numbers; an unknown index becomes 0, and its dimension is fixed."""
    if isinstance(arg, list | tuple) and any(isinstance(item, LabelledTensor) for item in arg):
        for dim, item in enumerate(arg):
            if isinstance(item, LabelledTensor) and item.known is None and dim < first.ndim:
                for axis in first.label_axes:
                    if axis.shape[dim] > 1:
                        labels.fix(axis, f"{name} by an index that data decides")
        return [_index(item) if isinstance(item, LabelledTensor) else item for item in arg]
    if not isinstance(arg, LabelledTensor):
        return arg
    if arg.known is None:
        labels.fix_all([first], f"{name} by an index that data decides")
    return _index(arg)


def _index(value: LabelledTensor) -> Tensor:
    return torch.zeros(value.shape, dtype=torch.int64) if value.known is None else value.known


def join(labels: Labels, values: Sequence[LabelledTensor], dim: int, name: str) -> LabelledTensor:
    """Concatenate labels along `dim`; unite them along the other dimensions."""
    values = [value for value in values if 0 not in value.shape] or values[:1]
    ndim, dim = values[0].ndim, dim % values[0].ndim
    total = sum(value.shape[dim] for value in values)
    shape = [total if d == dim else size for d, size in enumerate(values[0].shape)]
    axes: list[Tensor] = []
    for d in range(ndim):
        if d == dim or all(value.shape[d] == 1 for value in values):
            continue
        vectors = [labels.labels_along(value, d, name) for value in values]
        present = [vector for vector in vectors if vector is not None]
        for vector, value in zip(vectors, values, strict=True):
            if present and vector is None and not value.resizable:
                labels.fix(present[0], f"{name} with a tensor of fixed length")
            elif vector is not None:
                labels.unite(present[0], vector, name)
        if present:
            axes.append(make_axis(present[0], d, ndim))
    pieces = []
    for value in values:
        vector = labels.labels_along(value, dim, name)
        fixed = torch.full((value.shape[dim],), FIXED)
        pieces.append(fixed if vector is None else vector)
    axes.append(make_axis(torch.cat(pieces), dim, ndim))
    weight = all(value.weight for value in values)
    return replace(
        labels.value(shape, axes, weight=weight), resizable=all(v.resizable for v in values)
    )


def pad(labels: Labels, first: LabelledTensor, amounts: Sequence[int]) -> LabelledTensor:
    """Label the added positions as fixed, in dimensions along which labels vary."""
    shape, axes = list(first.shape), list(labels.axes(first))
    for number in range(len(amounts) // 2):
        before, after = amounts[2 * number : 2 * number + 2]
        dim = first.ndim - 1 - number
        shape[dim] += before + after
        for index, axis in enumerate(axes):
            if axis.shape[dim] > 1 and (before or after):
                axes[index] = _padded(axis, dim, before, after)
    return labels.value(shape, axes, weight=first.weight)


def _padded(axis: Tensor, dim: int, before: int, after: int) -> Tensor:
    def block(size: int) -> Tensor:
        return axis.new_full([size if d == dim else s for d, s in enumerate(axis.shape)], FIXED)

    start, stop = max(0, -before), axis.shape[dim] - max(0, -after)
    kept = axis.narrow(dim, start, stop - start)
    return torch.cat([block(max(0, before)), kept, block(max(0, after))], dim)


def unite_pieces(
    labels: Labels, whole: LabelledTensor, sizes: Sequence[int], dim: int, name: str
) -> None:
    """Unite the i-th positions of equal pieces, so that they stay equal."""
    if len({*sizes}) != 1 or len(sizes) < 2:
        return
    axes = [axis for axis in labels.axes(whole) if axis.shape[dim] > 1]
    if len(axes) > 1:
        labels.labels_along(whole, dim, name)  # they cannot be cut
    elif axes and not bool((axes[0] == FIXED).any()):
        pieces = torch.stack(axes[0].chunk(len(sizes), dim))
        labels.unite(pieces, pieces[:1], f"equal pieces of {name}")


def split_dims(labels: Labels, axes: Sequence[Tensor]) -> None:
    """Unite labels that a view spread over several dimensions, so that one of them may be cut.

    Rules of attention have chosen the heads before; elsewhere the longest dimension is kept, the
    last of equal ones: the channels within each group of a shuffle.
    """
    changed = True
    while changed:
        changed = False
        for axis in axes:
            axis = labels.compact(axis)
            dims = varying_dims(axis)
            if len(dims) > 1:
                longest = max(dims, key=lambda dim: (axis.shape[dim], dim))
                united = labels.unite_except(axis, longest, "a view into several dimensions")
                if len(varying_dims(united)) > 1:  # fixed positions among them, such as padding
                    labels.fix(united, "a view of fixed places into several dimensions")
                else:
                    changed = True


def bind(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by the names of the operation's schema, with defaults."""
    schema = target._schema.arguments
    bound = {argument.name: argument.default_value for argument in schema}
    bound |= {argument.name: given for argument, given in zip(schema, args, strict=False)}
    return bound | dict(kwargs)
