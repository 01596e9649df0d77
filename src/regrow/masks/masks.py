# SPDX-License-Identifier: MIT
"""Masks: name -> bool tensor; pack, unpack, check."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regrow.distributed.shard import Shard, is_dtensor, local_tensor, shard_of
from regrow.distributed.sharded_counts import ShardedCounts
from regrow.utils.bits import _fits, joined_bits, pack_bits, unpack_bits
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.names import strip_compile_prefix


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
        rows = {n: (s.start, s.stop) for n, s in (shards or {}).items() if s is not None}
        check_packed(packed)
        shapes, bits = packed.get("shapes", {}), packed.get("bits", {})
        return cls({n: unpack_bits(bits[n], shape, rows.get(n)) for n, shape in shapes.items()})

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
    own = {name: int(local_tensor(mask).count_nonzero()) for name, mask in masks.items()}
    if not any(map(is_dtensor, masks.values())):
        return own
    shards = [shard_of(name, mask) for name, mask in masks.items()]
    return dict(zip(own, ShardedCounts(shards).sums(own.values()), strict=True))


def _packed(name: str, mask: Tensor) -> Tensor:
    """The bits of a mask, of all its rows on every rank; no rank unpacks those of others."""
    shard = shard_of(name, mask)
    if shard is None:
        return pack_bits(mask)
    row, step = math.prod(shard.shape[1:]), -(-shard.shape[0] // shard.ranks.size)
    starts = [min(rank * step, shard.shape[0]) for rank in range(shard.ranks.size + 1)]
    parts = shard.ranks.gather_parts(pack_bits(local_tensor(mask)), everywhere=True)
    return joined_bits(parts, [(stop - start) * row for start, stop in itertools.pairwise(starts)])


def check_weights_masked(packed: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Refuses weights beside masks that they do not obey.

    In every checkpoint a pruned weight is exactly +0.0; one that is not means that weights and
    masks were saved at different moments, or changed since. Weights that are not there, have
    another shape or are sharded are left alone.

    Args:
        packed: What `Masks.pack` gave.
        tensors: Weights by name, as in a model's `state_dict`.

    Raises:
        StateError: Naming the parameters.
    """
    check_packed(packed)
    named = {strip_compile_prefix(str(name)): value for name, value in tensors.items()}
    wrong = []
    for name, shape in packed.get("shapes", {}).items():  # one mask at a time
        weight = named.get(name)
        if isinstance(weight, Tensor) and not is_dtensor(weight) and list(weight.shape) == shape:
            pruned = ~unpack_bits(packed["bits"][name], shape).to(weight.device)
            if bool(_alive(weight.detach())[pruned].any()):
                wrong.append(name)
    if wrong:
        raise StateError(
            f"the checkpoint's weights of {', '.join(wrong[:5])} are not zero where its masks "
            "prune: they are of different moments, or something else wrote these weights: load "
            "them into the model and start a fit without ckpt_path"
        )


def _alive(weight: Tensor) -> Tensor:
    return (weight != 0) | weight.signbit()
