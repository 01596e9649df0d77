# SPDX-License-Identifier: MIT
"""Counts over tensors whose rows are spread over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from regrow.distributed.shard import Shard


class ShardedCounts:
    """Counts over all ranks that hold parts of some tensors; of this one alone without parts.

    Args:
        shards: The rows of each tensor that this rank holds; None: all, as every rank does.

    Attributes:
        ranks: Who holds parts; None where nothing is cut.

    Example:
        >>> ShardedCounts([None, None]).sums([1, 2])
        [1, 2]
    """

    def __init__(self, shards: Sequence[Shard | None]) -> None:
        self.shards = shards
        self.ranks = next((shard.ranks for shard in shards if shard is not None), None)

    def counts(self, index: int) -> bool:
        """Whether a tensor enters this rank's sums: one that all hold is counted once."""
        return self.ranks is None or self.shards[index] is not None or self.ranks.rank == 0

    def sum(self, counts: Any) -> Any:
        """An array of counts, summed over the ranks."""
        return counts if self.ranks is None else self.ranks.sum(counts)

    def sums(self, counts: Iterable[int], indices: Sequence[int] | None = None) -> list[int]:
        """One count a tensor, of the tensors at `indices` (None: all), summed over the ranks."""
        places = range(len(self.shards)) if indices is None else indices
        own = [count if self.counts(i) else 0 for i, count in zip(places, counts, strict=True)]
        return [int(count) for count in self.sum(own)]

    def shares(self, total: int, own: Sequence[int], indices: Sequence[int]) -> list[int]:
        """How many of this rank's places are among the first `total` of all.

        The order is that of the tensors, and within one that of its rows, so of the ranks.

        Args:
            total: How many.
            own: This rank's places, tensor by tensor.
            indices: Which tensors.
        """
        assert self.ranks is not None
        every, found = self.ranks.all_gather_ints(own), []
        for place, index in enumerate(indices):
            cut, column = self.shards[index] is not None, every[:, place]
            before = int(column[: self.ranks.rank].sum()) if cut else 0
            found.append(min(max(0, total - before), own[place]))
            total = max(0, total - (int(column.sum()) if cut else own[place]))
        return found
