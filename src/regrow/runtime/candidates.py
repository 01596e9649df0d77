# SPDX-License-Identifier: MIT
"""The forms in which a layer can be executed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from regrow.runtime.sparse_layers import SparseLinear, SparsePointwiseConv, is_pointwise

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BLOCKS = (4, 8, 16)
MIN_SPARSITY = 0.5  # of weights, or of blocks: no sparse product of torch is faster below


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return Linear layers and convolutions inside a model, by name: those of torch's own classes.

    Subclasses and layers with hooks, such as those of `torch.nn.utils.weight_norm`, may compute
    something else.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in LAYERS
        and module is not model
        and not module._forward_pre_hooks
        and not module._forward_hooks
    }


def find_candidates(layer: nn.Module) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield the forms of a layer that may be faster: their names and how they are made."""
    weight = layer.get_parameter("weight").detach()
    made: Callable[..., nn.Module] = (
        SparseLinear if isinstance(layer, nn.Linear) else SparsePointwiseConv
    )
    if isinstance(layer, nn.Linear) or is_pointwise(layer):
        matrix = weight.flatten(1) != 0
        if 1 - matrix.float().mean() >= MIN_SPARSITY:
            yield "CSR", partial(made, layer)
        for block in BLOCKS:
            if zero_blocks(matrix, block) >= MIN_SPARSITY:
                yield f"BSR {block}x{block}", partial(made, layer, block)
        if weight.is_cuda and is_two_four(matrix):
            yield "2:4", partial(made, layer, None)
    if isinstance(layer, nn.Conv2d):
        yield "channels last", partial(_channels_last, layer)


def is_two_four(matrix: Tensor) -> bool:
    """Return whether at most two of each four neighbours in a row are not zero."""
    if matrix.shape[1] % 4:
        return False
    groups = matrix.reshape(len(matrix), matrix.shape[1] // 4, 4)
    return bool(((groups != 0).sum(2) <= 2).all())


def zero_blocks(nonzero: Tensor, block: int) -> float:
    """Return the fraction of square blocks of a matrix that are zero; 0 if they do not tile it.

    Example:
        >>> zero_blocks(torch.eye(4, dtype=torch.bool), 2), zero_blocks(torch.ones(4, 6), 4)
        (0.5, 0.0)
    """
    rows, columns = nonzero.shape
    if rows % block or columns % block:
        return 0.0
    blocks = nonzero.reshape(rows // block, block, columns // block, block)
    return float(1 - blocks.any(3).any(1).float().mean())


def _channels_last(layer: nn.Conv2d) -> nn.Conv2d:
    moved = copy.deepcopy(layer)
    moved.weight.data = moved.weight.data.contiguous(memory_format=torch.channels_last)
    return moved
