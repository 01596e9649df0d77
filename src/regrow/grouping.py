# SPDX-License-Identifier: MIT
"""Scores of one parameter -> scores of its units, and kept units -> its mask, some rows at a time.

Sorting and summing within units takes several times the memory of what it is done to.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from regrow.computed import Computed, Scores, computed
from regrow.granularity import Granularity
from regrow.selection import CHUNK


def units_of(granularity: Granularity, scores: Scores, input_dim: int | None) -> Tensor:
    """Scores of the units of one parameter.

    Args:
        granularity: n:m or blocks.
        scores: Of its weights.
        input_dim: The dimension of inputs.

    Example:
        >>> from regrow.granularity import make_granularity
        >>> units_of(make_granularity("2:4"), torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 1)
        tensor([[3.]])
    """
    parts = _parts(granularity, computed(scores), input_dim)
    return torch.cat([granularity.units(part, input_dim) for _, part in parts])


def mask_of(
    granularity: Granularity, kept: Tensor, scores: Scores, input_dim: int | None
) -> Tensor:
    """The mask of one parameter of which these units are kept.

    Args:
        granularity: n:m or blocks.
        kept: Bool, of the units' shape.
        scores: As given to `units_of`.
        input_dim: Likewise.

    Returns:
        A bool mask with the scores' shape and strides.

    Example:
        >>> from regrow.granularity import make_granularity
        >>> scores = torch.tensor([[4.0, 1.0, 3.0, 2.0]])
        >>> mask_of(make_granularity("2:4"), torch.tensor([[False]]), scores, 1)
        tensor([[ True, False,  True, False]])
    """
    read = computed(scores)
    mask = torch.empty_like(read.like, dtype=torch.bool)
    outputs = granularity.outputs
    for rows, part in _parts(granularity, read, input_dim):
        few = slice(rows.start // outputs, rows.stop // outputs)
        some = kept if input_dim == 0 else kept[few]
        mask[rows] = granularity.mask(some, part, input_dim)
    return mask


def _parts(
    granularity: Granularity, scores: Computed, input_dim: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """Rows, each with all of its units, and their scores; at once where rows are inputs."""
    reads, compute = scores.reads, scores.begin()
    count, size, units = reads[0].shape[0], reads[0].numel(), granularity.outputs
    step = max(1, CHUNK * count // max(1, size) // units) * units
    step = max(1, count) if input_dim == 0 else step
    for start in range(0, max(1, count), step):
        rows = slice(start, min(start + step, count))
        yield rows, compute(*(tensor[rows] for tensor in reads))
