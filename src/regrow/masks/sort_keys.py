# SPDX-License-Identifier: MIT
"""Floats as ordered integers.

Floats of one width order like integers once the sign is dealt with. On the CPU the integers are
NumPy's, whose operations are faster there; elsewhere tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from regrow.utils.bits import as_numpy, integer_type


class SortKeys:
    """Makes integers of scores.

    Args:
        dtype: To which scores are converted first; one of a byte becomes float32.
        magnitude: Whether |score| is what is ordered, else the signed value.

    Attributes:
        bits: The width of a key.
        most: The largest key.
        infinity: The key of infinity.

    Example:
        >>> SortKeys(torch.float32, True)(torch.tensor([1.0, -2.0, 0.5])).argsort().tolist()
        [2, 0, 1]
    """

    def __init__(self, dtype: torch.dtype, magnitude: bool) -> None:
        self.dtype = torch.float32 if dtype.itemsize == 1 else dtype
        self.magnitude = magnitude
        self.bits = self.dtype.itemsize * 8
        self.max_key = (1 << (self.bits - 1)) - 1
        infinity = torch.tensor(float("inf"), dtype=self.dtype)
        self.infinity = int(infinity.view(integer_type(self.dtype)))

    def __call__(self, scores: Tensor) -> Any:
        """The keys in flat-index order."""
        values = scores.detach().to(self.dtype).reshape(-1)
        if not self.magnitude:
            values = values + 0.0  # -0.0 and +0.0 are one value, so they must be one key
        bits = as_numpy(values.view(integer_type(self.dtype)))
        return (
            bits & self.max_key
            if self.magnitude
            else bits ^ ((bits >> (self.bits - 1)) & self.max_key)
        )

    def is_nan(self, keys: Any) -> Any:
        """Which keys are those of NaN: they lie beyond infinity, on either side."""
        beyond = keys > self.infinity
        return beyond if self.magnitude else beyond | (keys < ~self.infinity)

    def any_nan(self, keys: Any) -> bool:
        """Whether a key is that of NaN."""
        if not len(keys):
            return False
        return bool(keys.max() > self.infinity) or (
            not self.magnitude and bool(keys.min() < ~self.infinity)
        )


def nonzero(places: Any) -> Any:
    """The flat places that are True."""
    return places.nonzero().reshape(-1) if isinstance(places, Tensor) else np.flatnonzero(places)


def count_true(places: Any) -> int:
    """How many are True."""
    if isinstance(places, Tensor):
        return int(places.count_nonzero())
    return int(np.count_nonzero(places))


def sorted_keys(keys: Any) -> Any:
    """The keys, lowest first."""
    return keys.sort().values if isinstance(keys, Tensor) else np.sort(keys)
