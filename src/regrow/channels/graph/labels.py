# SPDX-License-Identifier: MIT
"""Channel labels: union-find over the positions along the dimensions of parameters.

Each index of each dimension of a parameter has a label, an integer. Labels of positions that the
network adds, multiplies or contracts are united; a class of united labels is one channel. A tensor
of labels has as many dimensions as the tensor it describes, of length 1 where labels do not vary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

FIXED = 0  # the label of a position that cannot be cut, such as padding

Arguments = dict[str, Any]  # of an operation, by the names of its schema


@dataclass(frozen=True)
class LabelledTensor:
    """The labels of one tensor of the network.

    The axes vary along different dimensions; one along which none varies has a fixed length.
    """

    shape: tuple[int, ...]
    label_axes: tuple[Tensor, ...] = ()
    resizable: bool = False  # created from sizes alone, as by `zeros_like`: fits any cut
    weight: bool = False  # computed from parameters alone
    known: Tensor | None = None  # the values, if they do not depend on the input, as an index

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def varies(self, dim: int) -> bool:
        """Whether labels vary along a dimension."""
        return any(axis.shape[dim] > 1 for axis in self.label_axes)


def varying_dims(axis: Tensor) -> list[int]:
    """Return the dimensions along which labels vary."""
    return [dim for dim, size in enumerate(axis.shape) if size > 1]


def make_axis(labels: Tensor, dim: int, ndim: int) -> Tensor:
    """Reshape a vector of labels to `ndim` dimensions, along `dim`."""
    return labels.reshape([-1 if d == dim % ndim else 1 for d in range(ndim)])


class Labels:
    """Union-find over labels, with marks for channels that cannot be cut, or not exactly."""

    def __init__(self) -> None:
        self._parent = torch.zeros(1, dtype=torch.int64)
        self._pending: list[Tensor] = []  # new labels, not yet in `_parent`
        self._count = 1
        self.owners: list[tuple[str, int]] = []  # tensor and dimension of each block of labels
        self.starts: list[int] = []  # first label of each block
        self.fixed: list[tuple[Tensor, str]] = []  # why they cannot be cut
        self.approximate: list[tuple[Tensor, str]] = []  # why zeroed ones affect the output

    def __len__(self) -> int:
        return self._count

    def new(self, name: str, dim: int, count: int) -> Tensor:
        """Create labels for the positions along a dimension of a tensor."""
        start = len(self)
        created = torch.arange(start, start + count)
        self._pending.append(created)
        self._count += count
        self.owners.append((name, dim))
        self.starts.append(start)
        return created

    def copies(self, shape: Sequence[int], dims: Iterable[int]) -> list[Tensor]:
        """Label the copies of one position, such as a mask for each head; not along the batch."""
        chosen = [dim for dim in dims if dim > 0 and shape[dim] > 1]
        return [make_axis(self.new("", dim, shape[dim]), dim, len(shape)) for dim in chosen]

    def find(self, labels: Tensor) -> Tensor:
        """Return the smallest label of the class of each label."""
        if self._pending:
            self._parent = torch.cat([self._parent, *self._pending])
            self._pending.clear()
        found = self._parent[labels]
        above = self._parent[found]
        if torch.equal(above, found):
            return found
        while not torch.equal(above, found):
            found, above = above, self._parent[above]
        self._parent[labels] = found
        return found

    def unite(self, one: Tensor, other: Tensor, reason: str) -> None:
        """Unite labels elementwise; a label united with `FIXED` is marked as fixed."""
        wide = torch.broadcast_shapes(one.shape, other.shape)  # type: ignore[no-untyped-call]
        one, other = one.expand(wide).reshape(-1), other.expand(wide).reshape(-1)
        fixed = (one == FIXED) != (other == FIXED)
        if fixed.any():
            self.fix(torch.maximum(one, other)[fixed], reason)
        both = (one != FIXED) & (other != FIXED)
        one, other = one[both], other[both]
        while True:
            one, other = self.find(one), self.find(other)
            low, high = torch.minimum(one, other), torch.maximum(one, other)
            apart = low != high
            if not apart.any():
                return
            one, other = low[apart], high[apart]
            self._parent.scatter_reduce_(0, other, one, "amin")

    def fix(self, labels: Tensor | None, reason: str) -> None:
        """Mark labels, if there are any, that cannot be cut."""
        self._mark(self.fixed, labels, reason)

    def mark_approximate(self, labels: Tensor | None, use: str) -> None:
        """Mark labels that affect the output even when zeroed: a cut changes the output."""
        self._mark(self.approximate, labels, f"a zeroed channel still counts in {use}")

    def _mark(self, marks: list[tuple[Tensor, str]], labels: Tensor | None, reason: str) -> None:
        if labels is not None and len(found := torch.unique(labels[labels != FIXED])):
            marks.append((found, reason))

    def compact(self, labels: Tensor) -> Tensor:
        """Return the classes, with length 1 in dimensions along which they do not vary."""
        return _narrowed(self.find(labels))

    def unite_except(self, axis: Tensor, keep: int | Iterable[int], reason: str) -> Tensor:
        """Unite along all dimensions but `keep`, so that a cut leaves a rectangular tensor."""
        kept = {keep} if isinstance(keep, int) else set(keep)
        for dim in varying_dims(axis):
            if dim not in kept:
                self.unite(axis, axis.narrow(dim, 0, 1), reason)
        return self.compact(axis)

    def value(
        self,
        shape: Sequence[int],
        axes: Iterable[Tensor],
        *,
        weight: bool = False,
        are_classes: bool = False,
    ) -> LabelledTensor:
        """Make a labelled tensor of the axes that vary; `are_classes`: skip the look-up."""
        found = (_narrowed(axis) if are_classes else self.compact(axis) for axis in axes)
        varying = tuple(axis for axis in found if varying_dims(axis))
        return LabelledTensor(tuple(shape), varying, weight=weight)

    def axes(self, value: LabelledTensor) -> tuple[Tensor, ...]:
        """Return the axes of a value after all unions made since."""
        return self.value(value.shape, value.label_axes).label_axes

    def relabel(self, value: LabelledTensor) -> LabelledTensor:
        return replace(value, label_axes=self.axes(value))

    def labels_along(self, value: LabelledTensor, dim: int, reason: str) -> Tensor | None:
        """Return the labels along one dimension, united along the others."""
        dim %= value.ndim
        if not value.varies(dim):
            return None
        found = [
            self.unite_except(axis, dim, reason) for axis in self.axes(value) if axis.shape[dim] > 1
        ]
        for axis in found[1:]:
            for fused in (axis, found[0]):
                self.fix(fused, f"{reason}: two dimensions become one")
        if not found or found[0].shape[dim] == 1:
            return None
        return found[0].reshape(-1)

    def unite_dims(
        self, one: LabelledTensor, dim: int, other: LabelledTensor, to: int, reason: str
    ) -> Tensor | None:
        """Unite the labels along dimensions of equal length of two values; return them."""
        first, second = self.labels_along(one, dim, reason), self.labels_along(other, to, reason)
        if first is not None and second is not None:
            self.unite(first, second, reason)
        elif first is not None and other.shape[to] > 1 and not other.resizable:
            self.fix(first, f"{reason}: the other side has a fixed length")
        elif second is not None and one.shape[dim] > 1 and not one.resizable:
            self.fix(second, f"{reason}: the other side has a fixed length")
        return first if first is not None else second

    def fix_all(self, values: Iterable[LabelledTensor], reason: str) -> None:
        """Mark all labels of some values as fixed."""
        for value in values:
            for axis in value.label_axes:
                self.fix(axis, reason)

    def broadcast(
        self, values: Sequence[LabelledTensor], shape: Sequence[int], reason: str
    ) -> LabelledTensor:
        """Unite labels at equal positions, as an elementwise operation does.

        Where an axis varies along several dimensions, such as heads and the positions within a
        head, and another value along inner ones alone, such as a rotary embedding, whole heads
        remain. A dimension that has a fixed length in one of the values cannot be cut.
        """
        wide = [_widened(value, len(shape)) for value in values]
        for axis in [axis for value in wide for axis in value.label_axes]:
            dims = varying_dims(axis)
            other = [{*varying_dims(a)} for v in wide for a in v.label_axes if len(dims) > 1]
            inner = {dim for along in other if dims[0] not in along for dim in along}
            if inner & {*dims}:
                self.unite_except(axis, {*dims} - inner, reason)
                wide = [self.relabel(value) for value in wide]
        ndim, axes = len(shape), list[Tensor]()
        for value in wide:
            others = [v for v in wide if v is not value and not v.resizable]
            for axis in self.axes(value):
                dims = varying_dims(axis)
                free = [d for d in dims if all(v.varies(d) or v.shape[d] == 1 for v in others)]
                if not free:
                    self.fix(axis, f"{reason}: the other side has a fixed length")
                    if any(v.label_axes for v in others):
                        continue  # the result has the labels of the other side
                elif free != dims:
                    axis = self.unite_except(axis, free, f"{reason}: a dimension of fixed length")
                axes = self._join(axes, axis, reason)
        resizable, weight = all(v.resizable for v in values), all(v.weight for v in values)
        if not resizable:
            fixed = [max(v.shape[d] for v in wide if not v.resizable) > 1 for d in range(ndim)]
            axes += self.copies(shape, (d for d in range(ndim) if not fixed[d]))
        return replace(self.value(shape, axes, weight=weight), resizable=resizable)

    def _join(self, axes: list[Tensor], axis: Tensor, reason: str) -> list[Tensor]:
        """Add an axis; it is united with those that vary along the same dimensions."""
        same = [s for s in axes if {*varying_dims(s)} & {*varying_dims(axis)}]
        for other in same:
            self.unite(axis, other, reason)
        if not same:
            return [*axes, axis]
        sizes = [max(sizes) for sizes in zip(*(s.shape for s in (axis, *same)), strict=True)]
        return [*(s for s in axes if not any(s is x for x in same)), axis.expand(sizes)]


# What an operation, of some arguments and with a result of some shape, does to labels: a rule
# unites those that must be cut together, and returns the labels of the result or the results.
Rule = Callable[[Labels, Arguments, Sequence[int]], LabelledTensor | list[LabelledTensor]]


def _widened(value: LabelledTensor, ndim: int) -> LabelledTensor:
    """Add dimensions of length 1 in front."""
    more = (1,) * (ndim - value.ndim)
    axes = tuple(axis.reshape(more + axis.shape) for axis in value.label_axes)
    return replace(value, shape=more + value.shape, label_axes=axes)


def _narrowed(labels: Tensor) -> Tensor:
    for dim in varying_dims(labels):
        first = labels.narrow(dim, 0, 1)
        if bool((labels == first).all()):
            labels = first
    return labels
