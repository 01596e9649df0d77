# SPDX-License-Identifier: MIT
"""Layers whose weight is multiplied as a sparse matrix."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from regrow.runtime.sparse_product import multiply_rows, to_sparse
from regrow.utils.errors import StateError


class SparseLayer(nn.Module):
    """A layer that computes without gradients what a dense one computes.

    It has the parameters of the dense layer, so that the state dict is the dense one, and a sparse
    copy of the weight.

    Args:
        dense: A Linear layer, or a convolution with one kernel position.
        block: As for `to_sparse`.
    """

    weight: Tensor
    bias: Tensor | None
    matrix: Tensor

    def __init__(self, dense: nn.Linear | _ConvNd, block: int | None = 1) -> None:
        super().__init__()
        self.weight, self.bias = dense.weight, dense.bias
        matrix = dense.weight.flatten(1)
        self.register_buffer("matrix", to_sparse(matrix, block), persistent=False)
        self.register_load_state_dict_pre_hook(_refuse_to_load)  # type: ignore[no-untyped-call]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs.

        Raises:
            StateError: In train mode, or where gradients are enabled.
        """
        if self.training or torch.is_grad_enabled():
            raise StateError(
                "a layer of an accelerated model has no gradients: call model.eval() and run it in "
                "torch.inference_mode(), or call undo() to train"
            )
        return self.compute(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseLayer:
        """Copy the layer: torch's own `deepcopy` of a tensor refuses these formats."""
        memo[id(self.matrix)] = self.matrix.clone()
        memo[id(self)] = new = type(self).__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def compute(self, x: Tensor) -> Tensor:
        """Compute the outputs."""
        raise NotImplementedError


class SparseLinear(SparseLayer):
    """A Linear layer with a sparse weight.

    Example:
        >>> layer = SparseLinear(nn.Linear(3, 4))
        >>> with torch.inference_mode():
        ...     layer(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 4])
    """

    def compute(self, x: Tensor) -> Tensor:
        """Compute `x @ weight.T + bias` for `x` of shape `(..., in)`."""
        rows = multiply_rows(x.reshape(-1, x.shape[-1]), self.matrix).contiguous()
        outputs = rows if self.bias is None else rows.add_(self.bias)
        return outputs.reshape(*x.shape[:-1], -1)


def _refuse_to_load(*_: Any) -> None:
    raise StateError(
        "a state dict cannot be loaded into an accelerated model: call undo(), load it, and "
        "accelerate the model again"
    )
