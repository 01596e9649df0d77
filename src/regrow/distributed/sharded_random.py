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
    """Compute this rank's rows of `draw(shape, generator=generator)`, without memory for others.

    `draw` is `torch.rand` or `torch.randn`, whose numbers do not depend on how many are drawn at
    once, except for the last sixteen. The CPU generator advances as if the whole tensor were drawn.
    """
    if shard is None:
        return draw(tuple(shape), generator=generator)
    numbers = RandomStream(draw, shape, shard, generator)
    rows = numbers.take((shard.stop - shard.start) * math.prod(shape[1:]))
    numbers.finish()
    return rows.view(-1, *shape[1:])


class RandomStream:
    """The numbers of `sharded_random` in flat order, some at a time, without storing the rest."""

    def __init__(
        self,
        draw: Callable[..., Tensor],
        shape: Sequence[int],
        shard: Shard | None,
        generator: torch.Generator,
    ) -> None:
        self._draw, self._generator = draw, generator
        self._size, self._drawn = math.prod(shape), 0
        self._buffer = torch.empty(0)
        self._skip(0 if shard is None else shard.places.start)

    def take(self, count: int) -> Tensor:
        """Return the next `count` numbers, flat."""
        numbers = torch.empty(count)
        filled = 0
        while filled < count:
            self._fill()
            part = self._buffer[: count - filled]
            numbers[filled : filled + len(part)] = part
            self._buffer = self._buffer[len(part) :]
            filled += len(part)
        return numbers

    def finish(self) -> None:
        """Draw the remaining numbers, so that the generator advances as if all were drawn."""
        self._skip(self._size - self._drawn + len(self._buffer))

    def _skip(self, count: int) -> None:
        while count:
            self._fill()
            skipped = min(count, len(self._buffer))
            self._buffer = self._buffer[skipped:]
            count -= skipped

    def _fill(self) -> None:
        """Draw the next numbers if the buffer is empty."""
        left = self._size - self._drawn
        if len(self._buffer) == 0 and left:
            count = left if left < CHUNK + 16 else CHUNK
            self._buffer = self._draw(count, generator=self._generator)
            self._drawn += count
