# SPDX-License-Identifier: MIT
"""Counts over tensors whose rows are sharded over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from regrow.distributed.shard import Shard


class ShardedCounts:
    """Counts summed over the ranks that hold shards of some tensors; None: all have it whole."""

    def __init__(self, shards: Sequence[Shard | None]) -> None:
        self.shards = shards
        self.ranks = next((shard.ranks for shard in shards if shard is not None), None)

    def counts(self, index: int) -> bool:
        """Whether this rank counts a tensor: one that all ranks have is counted once."""
        return self.ranks is None or self.shards[index] is not None or self.ranks.rank == 0

    def sum(self, counts: Any) -> Any:
        """Sum an array of counts over the ranks."""
        return counts if self.ranks is None else self.ranks.sum(counts)

    def sums(self, counts: Iterable[int], indices: Sequence[int] | None = None) -> list[int]:
        """Sum one count per tensor at `indices` (None: all) over the ranks."""
        places = range(len(self.shards)) if indices is None else indices
        own = [count if self.counts(i) else 0 for i, count in zip(places, counts, strict=True)]
        return [int(count) for count in self.sum(own)]

    def shares(self, total: int, own: Sequence[int], indices: Sequence[int]) -> list[int]:
        """Count this rank's elements among the first `total` of all ranks, per tensor.

        Elements are ordered by tensor, then by row, so by rank; `own` are this rank's numbers.
        """
        assert self.ranks is not None
        by_rank, shares = self.ranks.all_gather_ints(own), []
        for place, index in enumerate(indices):
            sharded, column = self.shards[index] is not None, by_rank[:, place]
            before = int(column[: self.ranks.rank].sum()) if sharded else 0
            shares.append(min(max(0, total - before), own[place]))
            total = max(0, total - (int(column.sum()) if sharded else own[place]))
        return shares
