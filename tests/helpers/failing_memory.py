# SPDX-License-Identifier: MIT
"""Memory that runs out: the n-th operation gets none."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Full(TorchDispatchMode):
    """Every operation needs memory, and the `left`-th gets none."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("full")
        return func(*args, **(kwargs or {}))
