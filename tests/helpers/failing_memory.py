# SPDX-License-Identifier: MIT
"""A mode in which the n-th operation runs out of memory."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Full(TorchDispatchMode):
    """Raise an out-of-memory error at the `left`-th operation."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("full")
        return func(*args, **(kwargs or {}))
