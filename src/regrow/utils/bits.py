# SPDX-License-Identifier: MIT
"""Integer views of floats, bit packing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


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


def unpack_bits(bits: Tensor, shape: Sequence[int], rows: tuple[int, int] | None = None) -> Tensor:
    """Restore the bool mask of `shape` that `pack_bits` wrote.

    Args:
        bits: What `pack_bits` returned.
        shape: The shape of the whole mask.
        rows: Restore only rows `[start, stop)` of the first dimension; None: all.
    """
    size = math.prod(shape[1:])
    start, stop = (0, math.prod(shape)) if rows is None else (rows[0] * size, rows[1] * size)
    first = start // 8
    flat = np.unpackbits(bits.cpu().numpy()[first : -(-stop // 8)], bitorder="little")
    mask = torch.from_numpy(flat.view(np.bool_))[start - 8 * first :][: stop - start]
    return mask.reshape(shape if rows is None else (rows[1] - rows[0], *shape[1:]))


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


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def integer_type(dtype: torch.dtype) -> torch.dtype:
    """The signed integer type as wide as `dtype`."""
    return _INTEGERS[dtype.itemsize]


def as_numpy(tensor: Tensor) -> Any:
    """A NumPy view on the CPU; else the tensor."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor
