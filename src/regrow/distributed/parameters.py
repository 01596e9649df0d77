# SPDX-License-Identifier: MIT
"""Sharding of a model's parameters: gather, and select this rank's part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from regrow.distributed.collectives import Ranks
from regrow.distributed.shard import Shard, shard_of
from regrow.distributed.sharded_counts import ShardedCounts
from regrow.utils.bits import pruned_before
from regrow.utils.errors import ConfigError

MOMENT = "::"  # separates a parameter's name from the name of its moment


class Shards(Mapping[str, Shard | None]):
    """The shard of each parameter by name; None for parameters that are not sharded.

    Args:
        parameters: Parameters by name.

    Attributes:
        ranks: The ranks that hold the shards; None where no parameter is sharded.

    Raises:
        ConfigError: See `shard_of`, and for parameters sharded over different ranks.

    Example:
        >>> shards = Shards({"w": torch.ones(3)})
        >>> shards["w"], shards.sums({"w": 3})
        (None, {'w': 3})
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._shards = {name: shard_of(name, p) for name, p in parameters.items()}
        self.ranks: Ranks | None = None
        for name, shard in self._shards.items():
            if shard is None:
                continue
            self.ranks = self.ranks or shard.ranks
            if shard.ranks.group != self.ranks.group:
                raise ConfigError(
                    f"{name} is sharded over other ranks than the parameters before it: shard all "
                    f"pruned parameters over one mesh, or write exclude=[{name!r}]"
                )

    def __getitem__(self, name: str) -> Shard | None:
        return self._shards[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def _shard(self, key: str) -> Shard | None:
        return self._shards[key.partition(MOMENT)[0]]

    def sums(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Sum counts per parameter over the shards; one all-reduce."""
        totals = ShardedCounts([self._shards[name] for name in counts]).sums(counts.values())
        return dict(zip(counts, totals, strict=True))

    def gather(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather tensors of the parameters' shapes on the first rank, one at a time.

        Flat tensors are concatenated; the other ranks receive empty tensors. A key is a parameter's
        name, or the name of one of its moments (`MOMENT`).
        """
        if self.ranks is None:
            return dict(values)
        gathered = {key: value for key, value in values.items() if self._shard(key) is None}
        # a rank without rows of a parameter takes part in the collective too
        own = {key: (v.dtype, v.dim()) for key, v in values.items() if self._shard(key) is not None}
        kinds = {
            key: kind for each in self.ranks.all_gather_objects(own) for key, kind in each.items()
        }
        for key, (dtype, dims) in sorted(kinds.items()):
            shard = self._shard(key)
            assert shard is not None
            nothing = torch.empty(0, dtype=dtype)
            parts = shard.ranks.gather_parts(values.get(key, nothing), everywhere=False)
            flat = torch.cat(parts) if parts else nothing
            gathered[key] = flat.view(shard.shape) if parts and dims > 1 else flat
        return gathered

    def local_rows(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Select this rank's rows of tensors of the parameters' shapes."""
        shards = self._shards
        return {
            name: value if (shard := shards[name]) is None else value[shard.start : shard.stop]
            for name, value in values.items()
        }

    def local_values(
        self, values: Mapping[str, Tensor], bits: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Select this rank's part of the values of pruned weights.

        Args:
            values: In flat-index order; keys as in `gather`.
            bits: Packed masks of whole parameters, by name.
        """
        selected = {}
        for key, value in values.items():
            name = key.partition(MOMENT)[0]
            shard = self._shards.get(name)
            if shard is not None and name in bits:
                first = pruned_before(bits[name], shard.places.start)
                value = value[first : pruned_before(bits[name], shard.places.stop)]
            selected[key] = value
        return selected
