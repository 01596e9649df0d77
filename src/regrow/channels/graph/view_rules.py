# SPDX-License-Identifier: MIT
"""Views, splits, concatenation, padding.

No rule says what `view`, `permute` or `roll` do: the operation moves labels as it moves numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regrow.channels.graph.labels import FIXED, LabelledTensor, Labels, at, varying
from regrow.channels.graph.operations import VIEWS


def move(labels: Labels, name: str, target: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """Runs an operation of `MOVES` on the labels of its first argument.

    Returns:
        A value, or a list of values where the operation returns several tensors.
    """
    first: LabelledTensor = args[0]
    if name.endswith("_as"):  # the other tensor lends its shape
        args = [first, args[1].shape]
    rest = [_numbers(labels, first, arg, name) for arg in args[1:]]
    kwargs = {key: _numbers(labels, first, arg, name) for key, arg in kwargs.items()}

    def run(tensor: Tensor) -> Any:
        if name in VIEWS:
            return tensor.reshape(rest[0])
        return target(tensor, *rest, **kwargs)

    blank = run(torch.empty(first.shape, dtype=torch.int64, device="meta"))
    real = None if first.real is None else run(first.real)
    moved = [run(slot.expand(first.shape)) for slot in labels.relabel(first).label_axes]
    if isinstance(blank, Tensor):
        value = labels.value(blank.shape, moved, weight=first.weight, known=True)
        return replace(value, real=real, free=first.free)
    return [
        replace(
            labels.value(
                piece.shape, [slots[i] for slots in moved], weight=first.weight, known=True
            ),
            real=None if real is None else real[i],
            free=first.free,
        )
        for i, piece in enumerate(blank)
    ]


def _numbers(labels: Labels, first: LabelledTensor, arg: Any, name: str) -> Any:
    """An argument as numbers; an unknown index reads place 0, and what varies there is pinned."""
    if isinstance(arg, list | tuple) and any(isinstance(item, LabelledTensor) for item in arg):
        for dim, item in enumerate(arg):
            if isinstance(item, LabelledTensor) and item.real is None and dim < first.ndim:
                for slot in first.label_axes:
                    if slot.shape[dim] > 1:
                        labels.pin(slot, f"{name} by an index that data decides")
        return [_numbers(labels, first, item, name) for item in arg]
    if not isinstance(arg, LabelledTensor):
        return arg
    if arg.real is not None:
        return arg.real
    labels.pin_all([first], f"{name} by an index that data decides")
    return torch.zeros(arg.shape, dtype=torch.int64)


def join(labels: Labels, values: Sequence[LabelledTensor], dim: int, name: str) -> LabelledTensor:
    """`cat`: labels follow one another along `dim`, and are united along the other dimensions."""
    values = [value for value in values if value.shape != (0,)]  # an empty start is allowed
    ndim, dim = values[0].ndim, dim % values[0].ndim
    total = sum(value.shape[dim] for value in values)
    shape = [total if d == dim else size for d, size in enumerate(values[0].shape)]
    slots: list[Tensor] = []
    for d in range(ndim):
        if d == dim or all(value.shape[d] == 1 for value in values):
            continue
        vectors = [labels.labels_along(value, d, name) for value in values]
        known = [vector for vector in vectors if vector is not None]
        for vector, value in zip(vectors, values, strict=True):
            if known and vector is None and not value.free:
                labels.pin(known[0], f"{name} with a tensor of fixed length")
            elif vector is not None:
                labels.unite(known[0], vector, name)
        if known:
            slots.append(at(known[0], d, ndim))
    pieces = []
    for value in values:
        vector = labels.labels_along(value, dim, name)
        fixed = torch.full((value.shape[dim],), FIXED)
        pieces.append(fixed if vector is None else vector)
    slots.append(at(torch.cat(pieces), dim, ndim))
    weight = all(value.weight for value in values)
    return replace(labels.value(shape, slots, weight=weight), free=all(v.free for v in values))


def pad(labels: Labels, first: LabelledTensor, amounts: Sequence[int], name: str) -> LabelledTensor:
    """What is added along a dimension that varies is fixed; along others labels just go on."""
    shape, slots = list(first.shape), list(labels.relabel(first).label_axes)
    for number in range(len(amounts) // 2):
        before, after = amounts[2 * number : 2 * number + 2]
        dim = first.ndim - 1 - number
        shape[dim] += before + after
        for index, slot in enumerate(slots):
            if slot.shape[dim] > 1 and (before or after):
                slots[index] = _padded(slot, dim, before, after)
    return labels.value(shape, slots, weight=first.weight)


def _padded(slot: Tensor, dim: int, before: int, after: int) -> Tensor:
    def block(size: int) -> Tensor:
        return slot.new_full([size if d == dim else s for d, s in enumerate(slot.shape)], FIXED)

    start, stop = max(0, -before), slot.shape[dim] - max(0, -after)
    kept = slot.narrow(dim, start, stop - start)
    return torch.cat([block(max(0, before)), kept, block(max(0, after))], dim)


def tie_pieces(
    labels: Labels, whole: LabelledTensor, sizes: Sequence[int], dim: int, name: str
) -> None:
    """Equal pieces stay equal: their i-th places are united."""
    if len({*sizes}) != 1 or len(sizes) < 2:
        return
    vector = labels.labels_along(whole, dim, name)
    if vector is not None and not bool((vector == FIXED).any()):
        pieces = vector.view(len(sizes), -1)
        labels.unite(pieces, pieces[:1], f"equal pieces of {name}")


def split_dims(labels: Labels, slots: Sequence[Tensor]) -> None:
    """Where labels vary along several dimensions after a view, only one of them may be cut.

    What reaches attention has been tied along all but the heads by then; for the rest the longest
    dimension is kept, the last of equals: the channels within each group of a shuffle.
    """
    moving = True
    while moving:
        moving = False
        for slot in slots:
            slot = labels.compact(slot)
            dims = varying(slot)
            if len(dims) > 1:
                longest = max(dims, key=lambda dim: (slot.shape[dim], dim))
                tied = labels.fix_multiple(slot, longest, "a view into several dimensions")
                if len(varying(tied)) > 1:  # places beside it are fixed, such as padding
                    labels.pin(tied, "a view of fixed places into several dimensions")
                else:
                    moving = True


def as_list(value: Any) -> list[Any]:
    """The items of a list argument; one item stands for itself."""
    return list(value) if isinstance(value, list | tuple) else [value]


def bind(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the operation's schema, defaults included."""
    schema = target._schema.arguments
    bound = {argument.name: argument.default_value for argument in schema}
    bound |= {argument.name: given for argument, given in zip(schema, args, strict=False)}
    return bound | dict(kwargs)
