# SPDX-License-Identifier: MIT
"""Count parameters and MACs of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from regrow.profiling.cost import pruned_counts
from regrow.profiling.macs import positions
from regrow.utils.names import strip_compile_prefix


class LayerCost(NamedTuple):
    """One row of `layer_table`.

    Attributes:
        name: Name of the weight.
        kind: Type of its module.
        shape: Shape of the weight.
        params: Number of kept weights.
        sparsity: Pruned fraction; 0 without a mask.
        macs: MACs of one example, without those of pruned weights.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    sparsity: float
    macs: int


def layer_table(
    model: nn.Module, example_input: Any, masks: Mapping[str, Tensor] | None = None
) -> list[LayerCost]:
    """List every weight that is used in a product or has a mask, in model order.

    Arguments and errors are those of `cost`.

    Example:
        >>> import torch
        >>> layer_table(nn.Linear(10, 4), torch.zeros(2, 10))
        [LayerCost(name='weight', kind='Linear', shape=(4, 10), params=40, sparsity=0.0, macs=40)]
    """
    pruned, used = pruned_counts(model, masks), positions(model, example_input)
    modules = model.named_modules(remove_duplicate=False)
    kinds = {
        strip_compile_prefix(f"{name}.")[:-1]: type(module).__name__ for name, module in modules
    }
    rows = []
    for raw, parameter in model.named_parameters():
        name = strip_compile_prefix(raw)
        kept = parameter.numel() - pruned.get(name, 0)
        if name in used or name in pruned:
            kind, shape = kinds[name.rpartition(".")[0]], tuple(parameter.shape)
            sparsity = 1 - kept / max(1, parameter.numel())
            macs = round(used.get(name, 0.0) * kept)
            rows.append(LayerCost(name, kind, shape, kept, sparsity, macs))
    return rows
