# SPDX-License-Identifier: MIT
"""Products with matrices in torch's sparse formats CSR, BSR and 2:4."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.sparse import to_sparse_semi_structured


def to_sparse(matrix: Tensor, block: int | None = 1) -> Tensor:
    """Convert a matrix to CSR, to BSR with square blocks, or to the 2:4 format of CUDA devices.

    Args:
        matrix: Of shape `(out, in)`.
        block: The size of the blocks, which divides both dimensions; 1 is CSR, None is 2:4.

    Raises:
        RuntimeError: If a device or a dtype has no such format, or 2:4 no such shape.

    Example:
        >>> to_sparse(torch.eye(4)).layout, to_sparse(torch.eye(4), block=2).values().shape
        (torch.sparse_csr, torch.Size([2, 2, 2]))
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
    """Compute `rows @ matrix.T` with a sparse matrix.

    The sparse matrix is the left factor and the other one contiguous: torch's kernels for CSR and
    BSR run many times slower otherwise. Those for 2:4 read either order.

    Args:
        rows: Of shape `(positions, in)`.
        matrix: A result of `to_sparse`, of shape `(out, in)`.

    Returns:
        The product `(positions, out)`, not contiguous.
    """
    columns = rows.mT if matrix.layout is torch.strided else rows.mT.contiguous()
    return (matrix @ columns).mT
