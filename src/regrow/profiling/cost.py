# SPDX-License-Identifier: MIT
"""Count parameters, multiply-accumulates (MACs) and bytes of a model.

MACs are those of the matrix products and convolutions, attention included, for one example. A
pruned weight saves as many MACs as its layer has output positions, with a sparse kernel; a dense
kernel still computes with the zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.profiling.macs import count_macs
from regrow.profiling.pruned_counts import pruned_counts
from regrow.utils.names import named_parameters


@dataclass(frozen=True)
class Cost:
    """Size of a model, and MACs of one example.

    Attributes:
        params: Parameters that are not pruned, including biases and norms.
        macs: MACs of one example, without those of pruned weights.
        bytes: Parameters and buffers; of a masked parameter, kept values and one bit per position.
    """

    params: int
    macs: int
    bytes: int


def cost(model: nn.Module, example_input: Any, masks: Mapping[str, Tensor] | None = None) -> Cost:
    """Count parameters, MACs and bytes, with or without masks.

    Args:
        model: The model; it runs once, in eval mode.
        example_input: A batch, whose first dimension counts examples (write `batch_first=True` in
            recurrent layers); a tuple holds positional arguments, a dict keyword arguments.
        masks: Bool masks by parameter name; None: dense.

    Raises:
        StateError: If a mask fits no parameter.

    Example:
        >>> import torch
        >>> layer, keep = nn.Linear(10, 4), torch.zeros(4, 10, dtype=torch.bool)
        >>> keep[:, 0] = True
        >>> cost(layer, torch.zeros(2, 10)), cost(layer, torch.zeros(2, 10), {"weight": keep})
        (Cost(params=44, macs=40, bytes=176), Cost(params=8, macs=4, bytes=37))
    """
    pruned, parameters = pruned_counts(model, masks), named_parameters(model)
    work = count_macs(model, example_input)
    tensors = (*model.parameters(), *model.buffers())
    # sparse ones are those that `accelerate` adds
    size = sum(t.numel() * t.itemsize for t in tensors if t.layout is torch.strided)
    for name, count in pruned.items():
        size += -(-parameters[name].numel() // 8) - count * parameters[name].itemsize
    saved = sum(work.positions.get(name, 0.0) * count for name, count in pruned.items())
    return Cost(
        params=sum(parameter.numel() for parameter in model.parameters()) - sum(pruned.values()),
        macs=round(work.macs - saved),
        bytes=size,
    )
