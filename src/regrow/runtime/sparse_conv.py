# SPDX-License-Identifier: MIT
"""Convolutions with one kernel position as products with a sparse matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from regrow.runtime.sparse_linear import SparseLayer


def is_pointwise(module: nn.Module) -> bool:
    """Return whether a convolution is a matrix product at each position.

    Example:
        >>> is_pointwise(nn.Conv2d(4, 8, 1, stride=2)), is_pointwise(nn.Conv2d(4, 8, 3))
        (True, False)
    """
    if not isinstance(module, _ConvNd) or module.transposed or module.groups > 1:
        return False
    padded = not isinstance(module.padding, str) and any(module.padding)
    return {*module.kernel_size} == {1} and not padded


class SparsePointwiseConv(SparseLayer):
    """A convolution with one kernel position and a sparse weight.

    Args:
        dense: A convolution for which `is_pointwise` holds.
        block: As for `to_sparse`.

    Example:
        >>> layer = SparsePointwiseConv(nn.Conv2d(3, 4, 1, stride=2))
        >>> with torch.inference_mode():
        ...     layer(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 4, 4, 4])
    """

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
        outputs = torch.stack([self.matrix @ example for example in columns])
        if self.bias is not None:
            outputs += self.bias[:, None]
        return outputs.reshape(*x.shape[: -spatial - 1], -1, *x.shape[-spatial:])
