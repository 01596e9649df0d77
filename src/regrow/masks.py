# SPDX-License-Identifier: MIT
"""Masks: a bool tensor for each pruned parameter, True = kept."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regrow.errors import ConfigError, StateError
from regrow.sharding import Everywhere, Shard, is_cut, local, shard_of


class Masks(Mapping[str, Tensor]):
    """An immutable mapping from parameter name to bool mask of the parameter's shape.

    Masks of sharded parameters are DTensors that are cut alike. Making and packing such masks sends
    counts and bits, so every rank must do it.

    Args:
        masks: Bool tensors by name, True = kept.
        kept: How many places each keeps, where that is known; None: they are counted.

    Attributes:
        total: How many weights the masks cover.
        pruned: How many of them are masked.
        sparsity: pruned / total.

    Raises:
        ConfigError: For a mask that is not a bool tensor.

    Example:
        >>> masks = Masks({"fc.weight": torch.tensor([[True, False], [False, False]])})
        >>> masks.sparsity, masks.density("fc.weight")
        (0.75, 0.25)
    """

    def __init__(self, masks: Mapping[str, Tensor], kept: Mapping[str, int] | None = None) -> None:
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise ConfigError(
                    f"the mask of {name} must be a bool tensor (True = kept), got {kind}: "
                    "write `weights != 0` if zeros are what you mean"
                )
        self._masks = dict(masks)
        self._kept = _counted(self._masks) if kept is None else dict(kept)
        self.total = sum(mask.numel() for mask in self._masks.values())
        self.pruned = self.total - sum(self._kept.values())

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return (
            f"Masks({len(self)} parameters, {self.total:,} weights, sparsity {self.sparsity:.4f})"
        )

    @property
    def sparsity(self) -> float:
        return self.pruned / self.total if self.total else 0.0

    def density(self, name: str) -> float:
        """The kept fraction of one parameter."""
        return self._kept[name] / max(1, self._masks[name].numel())

    def pack(self) -> dict[str, Any]:
        """Bits in flat-index order, eight a byte: tensors and builtin types only.

        Returns:
            `{"shapes": {name: [..]}, "bits": {name: uint8 tensor}}`, 1/32 of float32 weights.
        """
        return {
            "shapes": {name: list(mask.shape) for name, mask in self.items()},
            "bits": {name: _packed(name, mask) for name, mask in self.items()},
        }

    @classmethod
    def unpack(
        cls, packed: Mapping[str, Any], shards: Mapping[str, Shard | None] | None = None
    ) -> Masks:
        """The masks that `pack` wrote.

        Args:
            packed: By name.
            shards: Where a parameter is cut, this rank's rows of its mask are all that is made.

        Raises:
            StateError: If bits are missing or do not fit their shapes, naming the parameters.
        """
        cut = {name: shard for name, shard in (shards or {}).items() if shard is not None}
        check_packed(packed)
        shapes, bits = packed.get("shapes", {}), packed.get("bits", {})
        return cls({n: unpack_bits(bits[n], shape, cut.get(n)) for n, shape in shapes.items()})

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Sees that the masks are those of `parameters`.

        Raises:
            StateError: Naming the parameters without mask, the masks without parameter, and
                those whose shapes differ.
        """
        check_shapes({name: mask.shape for name, mask in self.items()}, parameters)

    def digest(self) -> str:
        """A short hash of names, shapes and bits, equal for equal masks."""
        found = hashlib.blake2b(digest_size=8)
        for name, mask in self.items():
            found.update(f"{name}{list(mask.shape)}".encode())
            found.update(_packed(name, mask).numpy().tobytes())
        return found.hexdigest()


def check_packed(packed: Mapping[str, Any]) -> None:
    """Sees that packed masks have the bits that their shapes need.

    Raises:
        StateError: Naming the parameters whose bits are missing or too many.
    """
    shapes, bits = packed.get("shapes", {}), packed.get("bits", {})
    lost = [
        name
        for name in {**shapes, **bits}
        if name not in shapes or not _fits(bits.get(name), shapes[name])
    ]
    if lost:
        raise StateError(f"the packed masks of {', '.join(lost)} are missing or damaged")


def check_shapes(shapes: Mapping[str, Sequence[int]], parameters: Mapping[str, Tensor]) -> None:
    """Sees that masks of these shapes are those of `parameters`.

    Raises:
        StateError: See `Masks.check`.
    """
    problems = [f"{name} has no mask" for name in parameters if name not in shapes]
    problems += [
        f"{name} is masked but not selected here" for name in shapes if name not in parameters
    ]
    problems += [
        f"{name} is {tuple(parameters[name].shape)}, its mask {tuple(shape)}"
        for name, shape in shapes.items()
        if name in parameters and list(parameters[name].shape) != list(shape)
    ]
    if problems:
        raise StateError("the masks do not fit the model: " + "; ".join(problems))


def _counted(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """How many places each mask keeps, on all ranks together."""
    own = {name: int(local(mask).count_nonzero()) for name, mask in masks.items()}
    if not any(map(is_cut, masks.values())):
        return own
    shards = [shard_of(name, mask) for name, mask in masks.items()]
    return dict(zip(own, Everywhere(shards).sums(own.values()), strict=True))


def _packed(name: str, mask: Tensor) -> Tensor:
    """The bits of a mask, of all its rows on every rank; no rank unpacks those of others."""
    shard = shard_of(name, mask)
    if shard is None:
        return pack_bits(mask)
    row, step = math.prod(shard.shape[1:]), -(-shard.shape[0] // shard.ranks.size)
    starts = [min(rank * step, shard.shape[0]) for rank in range(shard.ranks.size + 1)]
    parts = shard.ranks.parts(pack_bits(local(mask)), everywhere=True)
    return joined_bits(parts, [(stop - start) * row for start, stop in itertools.pairwise(starts)])


def _fits(bits: object, shape: list[int]) -> bool:
    size = -(-math.prod(shape) // 8)
    return isinstance(bits, Tensor) and bits.dtype == torch.uint8 and bits.shape == (size,)


def pack_bits(mask: Tensor) -> Tensor:
    """Eight places a byte, little bit order, in flat-index order, on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().reshape(-1).numpy(), bitorder="little"))


def joined_bits(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Packed places one part after the other, of which only the last need fill whole bytes.

    Args:
        parts: What `pack_bits` gave for each.
        sizes: How many places each has.

    Example:
        >>> both = torch.tensor([True, False, True]), torch.tensor([True])
        >>> joined_bits([pack_bits(part) for part in both], [3, 1])
        tensor([13], dtype=torch.uint8)
    """
    found = np.zeros(-(-sum(sizes) // 8) + 1, np.uint8)
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        byte, shift = divmod(start, 8)
        bits = part.cpu().numpy()
        found[byte : byte + len(bits)] |= bits << shift
        if shift:
            found[byte + 1 : byte + 1 + len(bits)] |= bits >> (8 - shift)
        start += size
    return torch.from_numpy(found[:-1].copy())


def unpack_bits(bits: Tensor, shape: Sequence[int], shard: Shard | None = None) -> Tensor:
    """The bool mask of `shape` that `pack_bits` wrote, or the rows of it that this rank holds."""
    places = slice(0, math.prod(shape)) if shard is None else shard.places
    first = places.start // 8
    flat = np.unpackbits(bits.cpu().numpy()[first : -(-places.stop // 8)], bitorder="little")
    found = torch.from_numpy(flat.view(np.bool_))[places.start - 8 * first :]
    rows = list(shape) if shard is None else [shard.stop - shard.start, *shape[1:]]
    return found[: places.stop - places.start].reshape(rows)


def pruned_before(bits: Tensor, place: int) -> int:
    """How many of the first `place` bits are 0.

    Example:
        >>> pruned_before(pack_bits(torch.tensor([True, False, False])), 2)
        1
    """
    whole, rest = divmod(place, 8)
    found = bits.cpu().numpy()
    ones = int(np.bitwise_count(found[:whole]).sum(dtype=np.int64))
    if rest:
        ones += int(np.bitwise_count(found[whole] & ((1 << rest) - 1)))
    return place - ones
