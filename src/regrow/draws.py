# SPDX-License-Identifier: MIT
"""Random numbers for a part of a tensor: those that the whole would get."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regrow.sharding import Shard

CHUNK = 1 << 16  # numbers drawn at once; a multiple of 16


def drawn(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    shard: Shard | None,
    generator: torch.Generator,
) -> Tensor:
    """What `draw(shape, generator=generator)` gives, or the rows of it that this rank holds.

    Args:
        draw: `torch.rand` or `torch.randn`, whose numbers do not depend on how many are drawn at
            once, but for the last sixteen.
        shape: Of the whole.
        shard: The rows; None: all. There is never room for the others.
        generator: On the CPU; it goes on as if all had been drawn.

    Example:
        >>> drawn(torch.rand, (2, 2), None, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 2])
    """
    if shard is None:
        return draw(tuple(shape), generator=generator)
    size, places, found, start = math.prod(shape), shard.places, [torch.empty(0)], 0
    while start < size:
        stop = size if size - start < CHUNK + 16 else start + CHUNK
        numbers = draw(stop - start, generator=generator)
        found.append(numbers[max(0, places.start - start) : max(0, places.stop - start)].clone())
        start = stop
    return torch.cat(found).view(-1, *shape[1:])
