# SPDX-License-Identifier: MIT
"""Refit kept weights by least squares, so that a pruned layer reproduces the dense one."""

from __future__ import annotations

import torch
from torch import Tensor

from regrow.calibration.moments import Moments

MEMORY = 2**28  # bytes of the systems that are solved at once
CONSTANT = 1e-10  # of its mean square: an input with less variance is constant but for rounding


def refit_rows(
    matrix: Tensor, mask: Tensor, xx: Tensor, xy: Tensor, damping: float = 1e-3
) -> Tensor:
    """Solve for the kept weights of each output row.

    With S the kept positions of a row, w_S = (H_SS + l I)^-1 (g_S + l v_S), where H = X^T X,
    g = X^T y, v are the present weights and l = damping * mean(diag H): ridge regression towards
    the present weights. A damping below 1e-8 counts as 1e-8, for inputs that depend on each other.

    Args:
        matrix: Present weights `(out, features)`.
        mask: Bool, kept weights.
        xx: X^T X, `(features, features)` in float64.
        xy: X^T Y, `(features, out)` in float64.
        damping: See above.

    Returns:
        New weights; zero where the mask is False.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        >>> keep = torch.tensor([[True, False]])
        >>> refit_rows(torch.ones(1, 2), keep, x.T @ x, x.T @ x.sum(1, keepdim=True), 0.0)
        tensor([[1.5000, 0.0000]], dtype=torch.float64)
    """
    ridge = max(damping, 1e-8) * xx.diagonal().mean().clamp_min(1e-30)
    present = matrix.double()
    if bool(mask.all()):  # all rows have the same equations
        factor = torch.linalg.cholesky(xx + ridge * torch.eye(len(xx), device=xx.device))
        return torch.cholesky_solve(xy + ridge * present.mT, factor).mT
    counts = mask.sum(1)
    solved = torch.zeros_like(present)
    order = counts.argsort()
    start = 0
    while start < len(order):
        # rows with about as many weights are solved together, padded to the most
        width = int(counts[order[start]])
        limit = max(width + 16, int(width * 1.1))
        stop = start + int((counts[order[start:]] <= limit).sum())
        stop = min(stop, start + max(1, MEMORY // (8 * max(1, limit) ** 2)))
        rows = order[start:stop]
        width = int(counts[rows].max())
        start = stop
        if not width:
            continue
        kept = mask[rows].to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
        real = torch.arange(width, device=mask.device) < counts[rows, None]
        hessian = xx[kept[:, :, None], kept[:, None, :]] * (real[:, :, None] & real[:, None, :])
        hessian.diagonal(dim1=1, dim2=2).add_(torch.where(real, ridge, 1.0))
        goal = xy.mT[rows].gather(1, kept) + ridge * present[rows].gather(1, kept)
        factor = torch.linalg.cholesky(hessian)
        values = torch.cholesky_solve((goal * real)[:, :, None], factor)[:, :, 0]
        solved[rows[:, None], kept] = torch.where(real, values, 0.0)
    return torch.where(mask, solved, 0.0)


def refit_matrix(
    matrix: Tensor, mask: Tensor, moments: Moments, bias: bool, damping: float = 1e-3
) -> tuple[Tensor, Tensor | None]:
    """Refit all groups of a layer.

    Args:
        matrix: Present weights `(groups, out, features)`.
        mask: Bool, kept weights.
        moments: Of the inputs of the pruned layer and the outputs of the dense one.
        bias: Whether the layer has a bias: then inputs and outputs are centred, and the bias is
            mean(y) - w . mean(x). Weights of constant inputs are left as they are.
        damping: See `refit_rows`.

    Returns:
        New weights, and the new bias `(groups, out)` or None.
    """
    assert moments.xy is not None
    assert moments.y is not None
    xx, xy, rows = moments.xx, moments.xy, moments.rows
    x, y = moments.x / rows, moments.y / rows
    if bias:
        squares = xx.diagonal(dim1=1, dim2=2)
        xx = xx - rows * x[:, :, None] * x[:, None, :]
        xy = xy - rows * x[:, :, None] * y[:, None, :]
        constant = xx.diagonal(dim1=1, dim2=2) <= CONSTANT * squares  # only rounding is left
        xx = xx.masked_fill(constant[:, :, None] | constant[:, None, :], 0.0)
        xy = xy.masked_fill(constant[:, :, None], 0.0)
    parts = [refit_rows(*group, damping) for group in zip(matrix, mask, xx, xy, strict=True)]
    solved = torch.stack(parts)
    shift = y - (solved @ x[:, :, None])[:, :, 0] if bias else None
    return solved, shift
