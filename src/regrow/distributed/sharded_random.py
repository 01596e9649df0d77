# SPDX-License-Identifier: MIT
"""Random tensors that do not depend on the sharding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regrow.distributed.shard import Shard

CHUNK = 1 << 16  # numbers drawn at once; a multiple of 16


def sharded_random(
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
        >>> sharded_random(torch.rand, (2, 2), None, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 2])
    """
    if shard is None:
        return draw(tuple(shape), generator=generator)
    numbers = RandomStream(draw, shape, shard, generator)
    found = numbers.take((shard.stop - shard.start) * math.prod(shape[1:]))
    numbers.finish()
    return found.view(-1, *shape[1:])


class RandomStream:
    """The numbers of `drawn` in flat order, some at a time; there is room for no others.

    Example:
        >>> numbers = RandomStream(torch.rand, (2, 2), None, torch.Generator().manual_seed(0))
        >>> numbers.take(3).shape, numbers.take(1).shape
        (torch.Size([3]), torch.Size([1]))
    """

    def __init__(
        self,
        draw: Callable[..., Tensor],
        shape: Sequence[int],
        shard: Shard | None,
        generator: torch.Generator,
    ) -> None:
        self._draw, self._generator = draw, generator
        self._size, self._drawn = math.prod(shape), 0
        self._held = torch.empty(0)
        self._pass_over(0 if shard is None else shard.places.start)

    def take(self, count: int) -> Tensor:
        """The next ones, flat."""
        found = torch.empty(count)
        filled = 0
        while filled < count:
            self._fill()
            part = self._held[: count - filled]
            found[filled : filled + len(part)] = part
            self._held = self._held[len(part) :]
            filled += len(part)
        return found

    def finish(self) -> None:
        """Draws what is left, so that the generator goes on as if all had been drawn."""
        self._held = self._held[:0]
        while self._drawn < self._size:
            self._fill()
            self._held = self._held[:0]

    def _pass_over(self, count: int) -> None:
        while count:
            self._fill()
            passed = min(count, len(self._held))
            self._held = self._held[passed:]
            count -= passed

    def _fill(self) -> None:
        """Draws the next ones where none are held."""
        left = self._size - self._drawn
        if len(self._held) == 0 and left:
            count = left if left < CHUNK + 16 else CHUNK
            self._held = self._draw(count, generator=self._generator)
            self._drawn += count
