# SPDX-License-Identifier: MIT
"""Bool masks by parameter name: count, pack, unpack, check."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from regrow.distributed.shard import (
    Shard,
    ShardedCounts,
    is_dtensor,
    local_tensor,
    shard_of,
    to_dtensor_like,
)
from regrow.masks.targets import select_targets
from regrow.utils.bits import is_packed_mask, joined_bits, pack_bits, unpack_bits
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.names import strip_compile_prefix


class PackedMasks(TypedDict):
    """Masks as bits in flat-index order: 1/32 of the size of float32 weights."""

    shapes: dict[str, list[int]]  # by parameter name
    bits: dict[str, Tensor]  # uint8 tensors by parameter name


class Masks(Mapping[str, Tensor]):
    """An immutable mapping from parameter name to bool mask of the parameter's shape.

    Masks of sharded parameters are DTensors, sharded alike. Making and packing such masks is a
    collective operation, so every rank must do it.

    Args:
        masks: Bool tensors by name, True = kept.
        kept: Number of kept weights by name; None: they are counted.

    Attributes:
        total: Number of weights.
        pruned: Number of masked weights.
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
                    "write `weights != 0` to mask the zeros"
                )
        self._masks = dict(masks)
        self._kept = _count_kept(self._masks) if kept is None else dict(kept)
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
        """Return the kept fraction of one parameter."""
        return self._kept[name] / max(1, self._masks[name].numel())

    def pack(self) -> PackedMasks:
        """Pack the masks into tensors and builtin types only."""
        return {
            "shapes": {name: list(mask.shape) for name, mask in self.items()},
            "bits": {name: _pack(name, mask) for name, mask in self.items()},
        }

    @classmethod
    def unpack(
        cls, packed: Mapping[str, Any], shards: Mapping[str, Shard | None] | None = None
    ) -> Masks:
        """Restore the masks that `pack` packed.

        Args:
            packed: The result of `pack`.
            shards: Shards by name; of a sharded parameter only this rank's rows are restored.

        Raises:
            StateError: If bits are missing or do not match their shapes.
        """
        rows = {n: (s.start, s.stop) for n, s in (shards or {}).items() if s is not None}
        check_pack(packed)
        shapes, bits = packed.get("shapes", {}), packed.get("bits", {})
        return cls({n: unpack_bits(bits[n], shape, rows.get(n)) for n, shape in shapes.items()})

    @classmethod
    def from_zeros(
        cls,
        model: nn.Module,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
    ) -> Masks:
        """Make masks that prune the weights of a model that are exactly zero.

        Args:
            model: A model that was pruned before; not changed.
            include: Patterns of parameters or modules; None: the weights of all linear maps.
            exclude: Patterns of those to leave out.

        Raises:
            ConfigError, StateError: See `regrow.masks.targets.select_targets`.

        Example:
            >>> layer = nn.Linear(2, 2)
            >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
            >>> Masks.from_zeros(layer)["weight"].tolist()
            [[True, False], [False, False]]
        """
        targets = select_targets(model, include, exclude).targets
        return cls({t.name: to_dtensor_like(t.parameter, t.weight != 0) for t in targets})

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Check that the masks match `parameters`.

        Raises:
            StateError: Naming parameters without mask, masks without parameter, and different
                shapes.
        """
        check_shapes({name: mask.shape for name, mask in self.items()}, parameters)

    def digest(self) -> str:
        """Return a short hash of names, shapes and bits, equal for equal masks."""
        result = hashlib.blake2b(digest_size=8)
        for name, mask in self.items():
            result.update(f"{name}{list(mask.shape)}".encode())
            result.update(_pack(name, mask).numpy().tobytes())
        return result.hexdigest()


def check_pack(packed: Mapping[str, Any]) -> None:
    """Check that packed masks have the bits that their shapes need."""
    shapes, bits = packed.get("shapes", {}), packed.get("bits", {})
    lost = [
        name
        for name in {**shapes, **bits}
        if name not in shapes or not is_packed_mask(bits.get(name), shapes[name])
    ]
    if lost:
        raise StateError(f"the packed masks of {', '.join(lost)} are missing or damaged")


def check_shapes(shapes: Mapping[str, Sequence[int]], parameters: Mapping[str, Tensor]) -> None:
    """Check that masks of these shapes match `parameters`; else `StateError` names the misfits."""
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


def _count_kept(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the kept weights of each mask, over all ranks."""
    own = {name: int(local_tensor(mask).count_nonzero()) for name, mask in masks.items()}
    if not any(map(is_dtensor, masks.values())):
        return own
    shards = [shard_of(name, mask) for name, mask in masks.items()]
    return dict(zip(own, ShardedCounts(shards).sums(own.values()), strict=True))


def _pack(name: str, mask: Tensor) -> Tensor:
    """Pack a mask, on every rank the rows of all ranks."""
    shard = shard_of(name, mask)
    if shard is None:
        return pack_bits(mask)
    row, step = math.prod(shard.shape[1:]), -(-shard.shape[0] // shard.ranks.size)
    starts = [min(rank * step, shard.shape[0]) for rank in range(shard.ranks.size + 1)]
    parts = shard.ranks.gather_parts(pack_bits(local_tensor(mask)), everywhere=True)
    return joined_bits(parts, [(stop - start) * row for start, stop in itertools.pairwise(starts)])


def check_weights_masked(packed: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Check that pruned weights are exactly +0.0, as in every checkpoint.

    Other values mean that weights and masks were saved at different times, or changed since.
    Weights that are missing, sharded or of another shape are ignored.
    """
    check_pack(packed)
    named = {strip_compile_prefix(str(name)): value for name, value in tensors.items()}
    wrong = []
    for name, shape in packed.get("shapes", {}).items():  # one mask at a time
        weight = named.get(name)
        if isinstance(weight, Tensor) and not is_dtensor(weight) and list(weight.shape) == shape:
            pruned = weight.detach()[~unpack_bits(packed["bits"][name], shape).to(weight.device)]
            if bool(((pruned != 0) | pruned.signbit()).any()):
                wrong.append(name)
    if wrong:
        raise StateError(
            f"the checkpoint's weights of {', '.join(wrong[:5])} are not zero where its masks "
            "prune: they were saved at different times, or the weights were changed since: load "
            "them into the model and start a fit without ckpt_path"
        )
