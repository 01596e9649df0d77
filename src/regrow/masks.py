# SPDX-License-Identifier: MIT
"""Masks: a bool tensor for each pruned parameter, True = kept."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regrow.errors import ConfigError, StateError


class Masks(Mapping[str, Tensor]):
    """An immutable mapping from parameter name to bool mask of the parameter's shape.

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

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise ConfigError(
                    f"the mask of {name} must be a bool tensor (True = kept), got {kind}: "
                    "write `weights != 0` if zeros are what you mean"
                )
        self._masks = dict(masks)
        self._kept = {name: int(mask.count_nonzero()) for name, mask in self._masks.items()}
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
            "bits": {name: pack_bits(mask) for name, mask in self.items()},
        }

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Masks:
        """The masks that `pack` wrote.

        Raises:
            StateError: If bits are missing or do not fit their shapes, naming the parameters.
        """
        shapes, bits = packed.get("shapes", {}), packed.get("bits", {})
        lost = [
            name
            for name in {**shapes, **bits}
            if name not in shapes or not _fits(bits.get(name), shapes[name])
        ]
        if lost:
            raise StateError(f"the packed masks of {', '.join(lost)} are missing or damaged")
        return cls({name: unpack_bits(bits[name], shape) for name, shape in shapes.items()})

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Sees that the masks are those of `parameters`.

        Raises:
            StateError: Naming the parameters without mask, the masks without parameter, and
                those whose shapes differ.
        """
        problems = [f"{name} has no mask" for name in parameters if name not in self]
        problems += [
            f"{name} is masked but not selected here" for name in self if name not in parameters
        ]
        problems += [
            f"{name} is {tuple(parameters[name].shape)}, its mask {tuple(mask.shape)}"
            for name, mask in self.items()
            if name in parameters and parameters[name].shape != mask.shape
        ]
        if problems:
            raise StateError("the masks do not fit the model: " + "; ".join(problems))

    def digest(self) -> str:
        """A short hash of names, shapes and bits, equal for equal masks."""
        found = hashlib.blake2b(digest_size=8)
        for name, mask in self.items():
            found.update(f"{name}{list(mask.shape)}".encode())
            found.update(pack_bits(mask).numpy().tobytes())
        return found.hexdigest()


def _fits(bits: object, shape: list[int]) -> bool:
    size = -(-math.prod(shape) // 8)
    return isinstance(bits, Tensor) and bits.dtype == torch.uint8 and bits.shape == (size,)


def pack_bits(mask: Tensor) -> Tensor:
    """Eight places a byte, little bit order, in flat-index order, on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().reshape(-1).numpy(), bitorder="little"))


def unpack_bits(bits: Tensor, shape: list[int]) -> Tensor:
    """The bool mask of `shape` that `pack_bits` wrote."""
    flat = np.unpackbits(bits.cpu().numpy(), count=math.prod(shape), bitorder="little")
    return torch.from_numpy(flat.view(np.bool_)).reshape(shape)
