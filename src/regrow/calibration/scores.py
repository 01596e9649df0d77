# SPDX-License-Identifier: MIT
"""Scores of weights from the second moments of their inputs: Wanda, RIA, OBS, SparseGPT."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

MEMORY = 2**28  # bytes of inverse Hessians that OBS holds at once
_SPARSE = 0.7  # nonzero fraction of rows up to which OBS inverts only their part of H


def damped(xx: Tensor, damping: float) -> Tensor:
    """Return H = X^T X + damping * mean(diag) * I, with 1 on the diagonal of dead inputs.

    Args:
        xx: X^T X, `(features, features)`.
        damping: Fraction of the mean of the diagonal; below 1e-8 it counts as 1e-8.
    """
    diagonal = xx.diagonal()
    dead = diagonal <= 0
    return xx + torch.diag(torch.where(dead, 1.0, max(damping, 1e-8) * diagonal.mean()))


def wanda(matrix: Tensor, xx: Tensor) -> Tensor:
    """Score |w_ij| * ||x_j||, as ranks within each output row.

    Args:
        matrix: Weights `(out, features)`.
        xx: X^T X, `(features, features)`.

    Returns:
        Ranks in (0, 1], so that a uniform sparsity removes as many weights of each row.

    Source: Sun et al. 2024 (Wanda), arXiv 2306.11695, equation 1.

    Example:
        >>> wanda(torch.tensor([[1.0, 2.0]]), torch.diag(torch.tensor([9.0, 1.0])))
        tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """
    return _row_ranks(matrix.double().abs() * xx.diagonal().sqrt())


def ria(matrix: Tensor, xx: Tensor) -> Tensor:
    """Score (|w_ij| / sum_j |w_ij| + |w_ij| / sum_i |w_ij|) * ||x_j||^(1/2), as ranks within rows.

    Args, Returns: As `wanda`.

    Source: Zhang et al. 2024 (Plug-and-Play, RIA), ICLR, equation 3.
    """
    size = matrix.double().abs()
    relative = size / size.sum(1, keepdim=True).clamp_min(1e-30)
    relative = relative + size / size.sum(0).clamp_min(1e-30)
    return _row_ranks(relative * xx.diagonal().sqrt().sqrt())


def _row_ranks(scores: Tensor) -> Tensor:
    order = scores.argsort(dim=1, stable=True).argsort(dim=1).double()
    return (order + 1) / scores.shape[1]


def obs(
    matrix: Tensor,
    xx: Tensor,
    damping: float = 1e-3,
    block: int = 32,
    exact: int = 1024,
    part: int = 128,
) -> Tensor:
    """Score weights by the loss at which the optimal brain surgeon removes them, row by row.

    In each row the weight with least w_j^2 / [H^-1]_jj goes, the others of the row are updated by
    -H^-1[:, j] w_j / [H^-1]_jj, and H^-1 loses row and column j, until nothing is left. The score
    is the largest loss so far, so that the scores of a row rise in the order of removal. This takes
    time proportional to out * features^3. Of more than `exact` features, each `part` of them are
    scored as if the others stayed, with their own block of H.

    Args:
        matrix: Weights `(out, features)`.
        xx: X^T X, `(features, features)`.
        damping: See `damped`.
        block: Number of removals after which H^-1 is downdated; does not change the result.
        exact: Number of features up to which scores are exact.
        part: Number of features that are scored together beyond that.

    Returns:
        Scores: what the layer's squared error rises by.

    Source: Hassibi and Stork 1993, equations 5 and 7; Frantar and Alistarh 2022 (OBC),
        arXiv 2208.11580, algorithm 1.
    """
    if len(xx) > exact:
        parts = torch.split(torch.arange(len(xx), device=xx.device), part)
        scored = [obs(matrix[:, p], xx[p][:, p], damping, block, part) for p in parts]
        return torch.cat(scored, 1)
    weights = matrix.double() * (xx.diagonal() > 0)  # weights of dead inputs have no effect
    hessian, rows = damped(xx, damping), max(1, MEMORY // (8 * xx.numel()))
    return torch.cat([_obs_rows(some, hessian, block) for some in torch.split(weights, rows)])


def _obs_rows(weights: Tensor, hessian: Tensor, block: int) -> Tensor:
    count, features = weights.shape
    rows = torch.arange(count, device=weights.device)
    scores, nonzero = torch.zeros_like(weights), weights != 0
    most = int(nonzero.sum(1).max())
    if not most:
        return scores
    if most > _SPARSE * features:
        at = torch.arange(features, device=weights.device).repeat(count, 1)  # of base's columns
        base = torch.linalg.inv(hessian).repeat(count, 1, 1)
    else:  # zeros go first, at no loss, which leaves the inverse of the rest of H
        features = most
        at = nonzero.byte().argsort(dim=1, descending=True, stable=True)[:, :features]
        base = hessian[at[:, :, None], at[:, None, :]]
        base = torch.cholesky_inverse(torch.linalg.cholesky(base))
    weights, diagonal = weights.gather(1, at), base.diagonal(dim1=1, dim2=2).clone()
    left = torch.ones_like(weights, dtype=torch.bool)
    pending = base.new_zeros(count, block, features)  # of removals, H^-1 = base - sum of p p^T
    largest = weights.new_zeros(count)
    for removed in range(features):
        losses = torch.where(left, weights.square() / diagonal, math.inf)
        loss, j = losses.min(1)
        largest = torch.maximum(largest, loss)
        scores[rows, at[rows, j]] = largest
        new = pending[:, : removed % block]
        column = base[rows, j] - (new[rows, :, j].unsqueeze(1) @ new)[:, 0]
        pivot = diagonal[rows, j, None]
        weights -= column * (weights[rows, j, None] / pivot)
        left[rows, j] = False
        p = column / pivot.sqrt()
        diagonal = torch.where(left, (diagonal - p.square()).clamp_min(1e-30), 1.0)
        weights *= left
        pending[:, removed % block] = p
        if removed % block == block - 1:
            base.baddbmm_(pending.mT, pending, alpha=-1)
            pending.zero_()
            size = features - removed - 1
            if 0 < size <= 0.8 * base.shape[1]:  # go on without the removed columns
                kept = left.byte().argsort(dim=1, descending=True, stable=True)[:, :size]
                pending = pending[:, :, :size]
                base = base[rows[:, None, None], kept[:, :, None], kept[:, None, :]]
                weights, diagonal, at, left = (
                    values.gather(1, kept) for values in (weights, diagonal, at, left)
                )
    return scores


def sparsegpt(
    matrix: Tensor, xx: Tensor, sparsity: float, damping: float = 1e-2, block: int = 128
) -> Tensor:
    """Score weights by a sweep over columns that removes a fraction of each block of columns.

    Within a block, the weights with the least w^2 / U_jj^2 go, where U is the upper Cholesky factor
    of H^-1; the error of each column is spread over the columns that follow.

    Args:
        matrix: Weights `(out, features)`.
        xx: X^T X, `(features, features)`.
        sparsity: The fraction to remove.
        damping: See `damped`.
        block: Number of columns of a block.

    Returns:
        Scores: those of removed weights are below 0, of kept ones above.

    Source: Frantar and Alistarh 2023 (SparseGPT), arXiv 2301.00774, algorithm 1.
    """
    inverse = torch.linalg.inv(damped(xx, damping))
    upper = torch.linalg.cholesky(inverse, upper=True)
    weights = matrix.double() * (xx.diagonal() > 0)
    scores = torch.zeros_like(weights)
    features = weights.shape[1]
    goal = removed = 0
    for start in range(0, features, block):
        stop = min(start + block, features)
        saliency = (weights[:, start:stop] / upper.diagonal()[start:stop]).square()
        goal = round(sparsity * stop * len(weights))
        gone = torch.zeros_like(saliency, dtype=torch.bool).flatten()
        gone[saliency.flatten().argsort(stable=True)[: goal - removed]] = True
        gone, removed = gone.view_as(saliency), goal
        scores[:, start:stop] = torch.where(gone, saliency - saliency.max() - 1, saliency)
        errors = torch.zeros_like(saliency)
        for j in range(start, stop):
            error = torch.where(gone[:, j - start], weights[:, j], 0.0) / upper[j, j]
            weights[:, j:stop] -= error[:, None] * upper[j, j:stop]
            errors[:, j - start] = error
        weights[:, stop:] -= errors @ upper[start:stop, stop:]
    return scores


CRITERIA: Mapping[str, Callable[..., Tensor]] = {
    "wanda": wanda,
    "ria": ria,
    "obs": obs,
    "sparsegpt": sparsegpt,
}
