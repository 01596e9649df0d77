# SPDX-License-Identifier: MIT
"""Products with matrices in torch's sparse formats CSR and BSR."""

from __future__ import annotations

import warnings

from torch import Tensor


def to_sparse(matrix: Tensor, block: int = 1) -> Tensor:
    """Convert a matrix to CSR, or to BSR with square blocks.

    Args:
        matrix: Of shape `(out, in)`.
        block: The size of the blocks, which divides both dimensions; 1 is CSR.

    Example:
        >>> import torch
        >>> to_sparse(torch.eye(4)).layout, to_sparse(torch.eye(4), block=2).values().shape
        (torch.sparse_csr, torch.Size([2, 2, 2]))
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Sparse (CSR|BSR) tensor support is in beta")
        if block == 1:
            return matrix.detach().to_sparse_csr()
        return matrix.detach().to_sparse_bsr((block, block))


def multiply_rows(rows: Tensor, matrix: Tensor) -> Tensor:
    """Compute `rows @ matrix.T` with a sparse matrix.

    The sparse matrix is the left factor and the other one contiguous: torch's kernels run many
    times slower otherwise.

    Args:
        rows: Of shape `(positions, in)`.
        matrix: A result of `to_sparse`, of shape `(out, in)`.

    Returns:
        The product `(positions, out)`, not contiguous.
    """
    return (matrix @ rows.mT.contiguous()).mT
