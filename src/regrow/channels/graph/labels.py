# SPDX-License-Identifier: MIT
"""Union-find over positions of tensors.

Every place along every dimension of a parameter gets a label, a number. Two places that a network
adds, multiplies or contracts are united; a class of united labels is one channel, wherever it
appears. A tensor of labels has the number of dimensions of the tensor that it describes, and
length 1 where its labels do not vary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FIXED = 0  # the label of a place that cannot be cut, such as padding


@dataclass(frozen=True)
class LabelledTensor:
    """A tensor of the network, described by labels.

    Attributes:
        shape: Its shape.
        slots: Tensors of labels, which vary along different dimensions. A dimension along which
            none varies has a fixed length.
        free: Whether it is made from sizes alone, as by `zeros_like`: it fits whatever is cut.
        weight: Whether it is made from parameters alone.
        real: Its numbers, where they are known: an index.
    """

    shape: tuple[int, ...]
    label_axes: tuple[Tensor, ...] = ()
    free: bool = False
    weight: bool = False
    real: Tensor | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def varies(self, dim: int) -> bool:
        """Whether a slot varies along a dimension."""
        return any(slot.shape[dim] > 1 for slot in self.label_axes)


def varying(slot: Tensor) -> list[int]:
    """The dimensions along which labels vary."""
    return [dim for dim, size in enumerate(slot.shape) if size > 1]


def at(labels: Tensor, dim: int, ndim: int) -> Tensor:
    """A vector of labels as a slot of dimension `dim`."""
    return labels.reshape([-1 if d == dim % ndim else 1 for d in range(ndim)])


class Labels:
    """Union-find over labels, with the places that are fixed and those that count when zeroed.

    Attributes:
        owners: Where each block of labels comes from: (tensor's name, dimension), in order.
        pins: (labels, why they cannot be cut).
        counted: (labels, why a zeroed channel would still count).

    Example:
        >>> labels = Labels()
        >>> rows, columns = labels.new("a.weight", 0, 3), labels.new("b.weight", 1, 3)
        >>> labels.unite(rows, columns, "a feeds b")
        >>> bool((labels.find(rows) == labels.find(columns)).all())
        True
    """

    def __init__(self) -> None:
        self._parent = torch.zeros(1, dtype=torch.int64)
        self._fresh: list[Tensor] = []  # not yet among the parents
        self._count = 1
        self.owners: list[tuple[str, int]] = []
        self.starts: list[int] = []
        self.pins: list[tuple[Tensor, str]] = []
        self.counted: list[tuple[Tensor, str]] = []

    def __len__(self) -> int:
        return self._count

    def new(self, name: str, dim: int, count: int) -> Tensor:
        """Labels of the places along a dimension of a tensor."""
        start = len(self)
        made = torch.arange(start, start + count)
        self._fresh.append(made)
        self._count += count
        self.owners.append((name, dim))
        self.starts.append(start)
        return made

    def find(self, labels: Tensor) -> Tensor:
        """The smallest label of each one's class."""
        if self._fresh:
            self._parent = torch.cat([self._parent, *self._fresh])
            self._fresh.clear()
        found = self._parent[labels]
        above = self._parent[found]
        if torch.equal(above, found):
            return found
        while not torch.equal(above, found):
            found, above = above, self._parent[above]
        self._parent[labels] = found
        return found

    def unite(self, one: Tensor, other: Tensor, reason: str) -> None:
        """Makes labels of the same place one class; what meets a fixed place becomes fixed."""
        wide = torch.broadcast_shapes(one.shape, other.shape)  # type: ignore[no-untyped-call]
        one, other = one.expand(wide).reshape(-1), other.expand(wide).reshape(-1)
        fixed = (one == FIXED) != (other == FIXED)
        if fixed.any():
            self.pin(torch.maximum(one, other)[fixed], reason)
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

    def pin(self, labels: Tensor, reason: str) -> None:
        """These cannot be cut."""
        self._mark(self.pins, labels, reason)

    def inexact(self, labels: Tensor, reason: str) -> None:
        """These still count where they are zeroed: the cut network computes something else."""
        self._mark(self.counted, labels, reason)

    def _mark(self, marks: list[tuple[Tensor, str]], labels: Tensor, reason: str) -> None:
        labels = torch.unique(labels[labels != FIXED])
        if len(labels):
            marks.append((labels, reason))

    def compact(self, labels: Tensor) -> Tensor:
        """Classes, with length 1 in the dimensions along which they do not vary."""
        return _narrowed(self.find(labels))

    def fix_multiple(self, slot: Tensor, keep: int | Iterable[int], reason: str) -> Tensor:
        """Unites along all dimensions but `keep`: only there a cut leaves a rectangle."""
        kept = {keep} if isinstance(keep, int) else set(keep)
        for dim in varying(slot):
            if dim not in kept:
                self.unite(slot, slot.narrow(dim, 0, 1), reason)
        return self.compact(slot)

    def value(
        self,
        shape: Sequence[int],
        slots: Iterable[Tensor],
        *,
        weight: bool = False,
        known: bool = False,
    ) -> LabelledTensor:
        """A value of these slots; slots that do not vary are left out; `known`: classes already."""
        found = (_narrowed(slot) if known else self.compact(slot) for slot in slots)
        return LabelledTensor(tuple(shape), tuple(s for s in found if varying(s)), weight=weight)

    def relabel(self, value: LabelledTensor) -> LabelledTensor:
        """The value after what was united since it was made."""
        return replace(value, label_axes=self.value(value.shape, value.label_axes).label_axes)

    def labels_along(self, value: LabelledTensor, dim: int, reason: str) -> Tensor | None:
        """The labels of one dimension; a slot that varies along others too is tied there."""
        dim %= value.ndim
        if not value.varies(dim):  # nor will it
            return None
        found = [
            self.fix_multiple(slot, dim, reason)
            for slot in self.relabel(value).label_axes
            if slot.shape[dim] > 1
        ]
        for slot in found[1:]:
            for each in (slot, found[0]):
                self.pin(each, f"{reason}: two dimensions become one")
        if not found or found[0].shape[dim] == 1:
            return None
        return found[0].reshape(-1)

    def unite_dims(
        self, one: LabelledTensor, dim: int, other: LabelledTensor, to: int, reason: str
    ) -> Tensor | None:
        """Unites a dimension with another value's of the same length; returns its labels."""
        first, second = self.labels_along(one, dim, reason), self.labels_along(other, to, reason)
        if first is not None and second is not None:
            self.unite(first, second, reason)
        elif first is not None and other.shape[to] > 1 and not other.free:
            self.pin(first, f"{reason}: the other side has a fixed length")
        elif second is not None and one.shape[dim] > 1 and not one.free:
            self.pin(second, f"{reason}: the other side has a fixed length")
        return first if first is not None else second

    def pin_all(self, values: Iterable[LabelledTensor], reason: str) -> None:
        """Pins all labels of some values."""
        for value in values:
            for slot in value.label_axes:
                self.pin(slot, reason)

    def broadcast(
        self, values: Sequence[LabelledTensor], shape: Sequence[int], reason: str
    ) -> LabelledTensor:
        """Elementwise: what stands at the same place is united."""
        ndim, slots = len(shape), list[Tensor]()
        lengths = [(1,) * (ndim - v.ndim) + v.shape for v in values]
        for index, value in enumerate(values):
            for slot in value.label_axes:
                wide = slot.reshape((1,) * (ndim - value.ndim) + slot.shape)
                for dim in varying(wide):
                    for number, other in enumerate(values):
                        if number == index or other.free or lengths[number][dim] == 1:
                            continue
                        if not other.varies(dim - ndim):
                            self.pin(slot, f"{reason}: the other side has a fixed length")
                slots = self._join(slots, wide, reason)
        free, weight = all(v.free for v in values), all(v.weight for v in values)
        return replace(self.value(shape, slots, weight=weight), free=free)

    def _join(self, slots: list[Tensor], slot: Tensor, reason: str) -> list[Tensor]:
        """Adds a slot, united with those that vary where it does."""
        same = [s for s in slots if {*varying(s)} & {*varying(slot)}]
        for other in same:
            self.unite(slot, other, reason)
        if not same:
            return [*slots, slot]
        sizes = [max(sizes) for sizes in zip(*(s.shape for s in (slot, *same)), strict=True)]
        return [*(s for s in slots if not any(s is x for x in same)), slot.expand(sizes)]


def _narrowed(labels: Tensor) -> Tensor:
    for dim in varying(labels):
        first = labels.narrow(dim, 0, 1)
        if bool((labels == first).all()):
            labels = first
    return labels
