# SPDX-License-Identifier: MIT
"""Floats as ordered integers.

The bits of floats order like integers, except for the sign. On the CPU keys are NumPy arrays, whose
operations are faster there; elsewhere tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from regrow.utils.bits import as_numpy, integer_type


class SortKeys:
    """Converts scores to integer keys of the same order: that of |score| by `magnitude`."""

    def __init__(self, dtype: torch.dtype, magnitude: bool) -> None:
        self.dtype = torch.float32 if dtype.itemsize == 1 else dtype
        self.magnitude = magnitude
        self.bits = self.dtype.itemsize * 8
        self.max_key = (1 << (self.bits - 1)) - 1
        infinity = torch.tensor(float("inf"), dtype=self.dtype)
        self.infinity = int(infinity.view(integer_type(self.dtype)))

    def __call__(self, scores: Tensor) -> Any:
        """Compute the keys in flat-index order."""
        values = scores.detach().to(self.dtype).reshape(-1)
        if not self.magnitude:
            values = values + 0.0  # -0.0 and +0.0 are one value, so they need one key
        bits = as_numpy(values.view(integer_type(self.dtype)))
        return (
            bits & self.max_key
            if self.magnitude
            else bits ^ ((bits >> (self.bits - 1)) & self.max_key)
        )

    def is_nan(self, keys: Any) -> Any:
        """Return where keys are those of NaN: beyond infinity, on either side."""
        beyond = keys > self.infinity
        return beyond if self.magnitude else beyond | (keys < ~self.infinity)

    def any_nan(self, keys: Any) -> bool:
        """Check whether any key is that of NaN."""
        if not len(keys):
            return False
        return bool(keys.max() > self.infinity) or (
            not self.magnitude and bool(keys.min() < ~self.infinity)
        )


def nonzero(mask: Any) -> Any:
    """Return the flat indices of the True elements."""
    return mask.nonzero().reshape(-1) if isinstance(mask, Tensor) else np.flatnonzero(mask)


def count_true(mask: Any) -> int:
    """Count the True elements."""
    return int(mask.count_nonzero() if isinstance(mask, Tensor) else np.count_nonzero(mask))


def sorted_keys(keys: Any) -> Any:
    """Return the keys, lowest first."""
    return keys.sort().values if isinstance(keys, Tensor) else np.sort(keys)
