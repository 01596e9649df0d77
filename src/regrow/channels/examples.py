# SPDX-License-Identifier: MIT
"""The batch that a network is traced and tried with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regrow.macs import batch_size


def two_examples(example_input: Any, model: nn.Module) -> Any:
    """A batch of two, of the model's type and on its device; more are not needed.

    Example:
        >>> two_examples(torch.zeros(1, 4), nn.Linear(4, 2)).shape
        torch.Size([2, 4])
    """
    size, parameter = batch_size(example_input), next(model.parameters())

    def two(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.dim() and len(x) == size:
            x = x[:2] if size > 1 else torch.cat([x, x])
        dtype = parameter.dtype if x.is_floating_point() else x.dtype
        return x.detach().to(parameter.device, dtype)

    return tree_map(two, example_input)
