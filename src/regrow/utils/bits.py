# SPDX-License-Identifier: MIT
"""Integer views of floats, bit packing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_packed_mask(bits: object, shape: Sequence[int]) -> bool:
    """Check that `bits` is what `pack_bits` returns for a mask of `shape`."""
    size = -(-math.prod(shape) // 8)
    return isinstance(bits, Tensor) and bits.dtype == torch.uint8 and bits.shape == (size,)


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool mask, eight elements a byte, little bit order, flat-index order, on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().reshape(-1).numpy(), bitorder="little"))


def joined_bits(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Concatenate packed masks of `sizes` elements, which need not be multiples of eight."""
    joined = np.zeros(-(-sum(sizes) // 8) + 1, np.uint8)
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        byte, shift = divmod(start, 8)
        bits = part.cpu().numpy()
        joined[byte : byte + len(bits)] |= bits << shift
        if shift:
            joined[byte + 1 : byte + 1 + len(bits)] |= bits >> (8 - shift)
        start += size
    return torch.from_numpy(joined[:-1].copy())


def unpack_bits(bits: Tensor, shape: Sequence[int], rows: tuple[int, int] | None = None) -> Tensor:
    """Restore the bool mask of `shape` that `pack_bits` packed, or its rows `[start, stop)`."""
    size = math.prod(shape[1:])
    start, stop = (0, math.prod(shape)) if rows is None else (rows[0] * size, rows[1] * size)
    first = start // 8
    flat = np.unpackbits(bits.cpu().numpy()[first : -(-stop // 8)], bitorder="little")
    mask = torch.from_numpy(flat.view(np.bool_))[start - 8 * first :][: stop - start]
    return mask.reshape(shape if rows is None else (rows[1] - rows[0], *shape[1:]))


def pruned_before(bits: Tensor, index: int) -> int:
    """Count the zeros among the first `index` bits."""
    n_bytes, rest = divmod(index, 8)
    array = bits.cpu().numpy()
    # the ones of each byte: NumPy has bitwise_count from version 2 on
    ones_of = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)
    ones = int(ones_of[array[:n_bytes]].sum(dtype=np.int64))
    if rest:
        ones += int(ones_of[array[n_bytes] & ((1 << rest) - 1)])
    return index - ones


def integer_type(dtype: torch.dtype) -> torch.dtype:
    """Return the signed integer type as wide as `dtype`."""
    return _INTEGERS[dtype.itemsize]


def as_numpy(tensor: Tensor) -> Any:
    """Return a NumPy view of a CPU tensor, and any other tensor unchanged."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor
