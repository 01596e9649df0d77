# SPDX-License-Identifier: MIT
"""Layers whose weight is multiplied as a matrix in torch's sparse formats CSR, BSR and 2:4."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.sparse import to_sparse_semi_structured

from regrow.utils.errors import StateError
from regrow.utils.names import check_has_values


class SparseLayer(nn.Module):
    """A layer that computes without gradients what a dense one computes.

    It has the parameters of the dense layer, so that the state dict is the dense one, and a sparse
    copy of the weight; `block` is as for `to_sparse`.
    """

    weight: Tensor
    bias: Tensor | None
    matrix: Tensor

    def __init__(self, dense: nn.Linear | _ConvNd, block: int | None = 1) -> None:
        super().__init__()
        self.weight, self.bias = dense.weight, dense.bias
        for name in dense.__constants__:  # sizes, which the model may read
            setattr(self, name, getattr(dense, name))
        matrix = dense.weight.flatten(1)
        self.register_buffer("matrix", to_sparse(matrix, block), persistent=False)
        self.register_load_state_dict_pre_hook(_refuse_to_load)  # type: ignore[no-untyped-call]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs; raise in train mode, or where gradients are enabled."""
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


def check_dense(model: nn.Module) -> None:
    """Raise `StateError` for a model that is accelerated already, or has no values."""
    if any(isinstance(module, SparseLayer) for module in model.modules()):
        raise StateError("the model is accelerated already: call undo() of its Acceleration first")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        check_has_values(name, tensor)


class SparseLinear(SparseLayer):
    """A Linear layer with a sparse weight."""

    def compute(self, x: Tensor) -> Tensor:
        """Compute `x @ weight.T + bias` for `x` of shape `(..., in)`."""
        rows = multiply_rows(x.reshape(-1, x.shape[-1]), self.matrix).contiguous()
        outputs = rows if self.bias is None else rows.add_(self.bias)
        return outputs.reshape(*x.shape[:-1], len(self.weight))


def is_pointwise(module: nn.Module) -> bool:
    """Return whether a convolution is a matrix product at each position."""
    if not isinstance(module, _ConvNd) or module.transposed or module.groups > 1:
        return False
    padded = not isinstance(module.padding, str) and any(module.padding)
    return {*module.kernel_size} == {1} and not padded


class SparsePointwiseConv(SparseLayer):
    """A convolution for which `is_pointwise` holds, with a sparse weight."""

    stride: tuple[int, ...]

    def __init__(self, dense: _ConvNd, block: int | None = 1) -> None:
        super().__init__(dense, block)
        self.stride = dense.stride

    def compute(self, x: Tensor) -> Tensor:
        """Compute the convolution of `(batch, channels, ...)` or of one example without batch."""
        spatial = len(self.stride)
        for axis, step in enumerate(self.stride, start=-spatial):
            x = x.movedim(axis, -1)[..., ::step].movedim(-1, axis)
        batched = x if x.ndim == spatial + 2 else x.unsqueeze(0)
        columns = batched.flatten(2).contiguous()  # (batch, channels, positions)
        outputs = x.new_empty(len(columns), len(self.weight), columns.shape[2])
        for example, output in zip(columns, outputs, strict=True):
            output.copy_(self.matrix @ example)
        if self.bias is not None:
            outputs += self.bias[:, None]
        return outputs.reshape(*x.shape[: -spatial - 1], len(self.weight), *x.shape[-spatial:])


def to_sparse(matrix: Tensor, block: int | None = 1) -> Tensor:
    """Convert a matrix `(out, in)` to CSR, to BSR with square blocks, or to 2:4 of CUDA devices.

    `block` divides both dimensions; 1 is CSR, None is 2:4. Where a device, a dtype or a shape has
    no such format, torch raises a RuntimeError.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Sparse (CSR|BSR) tensor support is in beta")
        warnings.filterwarnings("ignore", r"The PyTorch API of SparseSemiStructuredTensor")
        if block is None:
            return to_sparse_semi_structured(matrix.detach().contiguous())
        if block == 1:
            return matrix.detach().to_sparse_csr()
        return matrix.detach().to_sparse_bsr((block, block))


def multiply_rows(rows: Tensor, matrix: Tensor) -> Tensor:
    """Compute `rows @ matrix.T` with a result of `to_sparse`; the product is not contiguous.

    The sparse matrix is the left factor and the other one contiguous: torch's kernels for CSR and
    BSR run many times slower otherwise. Those for 2:4 read either order.
    """
    columns = rows.mT if matrix.layout is torch.strided else rows.mT.contiguous()
    return (matrix @ columns).mT


def _refuse_to_load(*_: Any) -> None:
    raise StateError(
        "a state dict cannot be loaded into an accelerated model: call undo(), load it, and "
        "accelerate the model again"
    )
