# SPDX-License-Identifier: MIT
"""Sharding of all parameters of a model: gather, scatter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from regrow.distributed.collectives import Ranks
from regrow.distributed.shard import Shard, shard_of
from regrow.distributed.sharded_counts import ShardedCounts
from regrow.utils.bits import pruned_before
from regrow.utils.errors import ConfigError

MOMENT = "::"  # between a parameter's name and its moment's


class Shards(Mapping[str, Shard | None]):
    """How each of some parameters is cut; all that are must be held by the same ranks.

    Args:
        parameters: By name.

    Attributes:
        ranks: Those ranks; None where every parameter is whole here.

    Raises:
        ConfigError: See `shard_of`, and for parameters cut among different ranks.

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
                    f"{name} is cut among other ranks than the parameters before it: shard all "
                    f"that is pruned over one mesh, or write exclude=[{name!r}]"
                )

    def __getitem__(self, name: str) -> Shard | None:
        return self._shards[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def _of(self, key: str) -> Shard | None:
        return self._shards[key.partition(MOMENT)[0]]

    def sums(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts of whole parameters from those of this rank's parts; one all-reduce."""
        found = ShardedCounts([self._shards[name] for name in counts]).sums(counts.values())
        return dict(zip(counts, found, strict=True))

    def gather(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the parameters' shapes, gathered one at a time by the first rank alone.

        Flat ones are joined as they are; the other ranks get empty ones. A key may say more after
        the parameter's name (`MOMENT`).
        """
        if self.ranks is None:
            return dict(values)
        found = {key: value for key, value in values.items() if self._of(key) is None}
        # a rank may have nothing of a parameter: it joins in all the same
        own = {key: (v.dtype, v.dim()) for key, v in values.items() if self._of(key) is not None}
        kinds = {
            key: kind for each in self.ranks.all_gather_objects(own) for key, kind in each.items()
        }
        for key, (dtype, dims) in sorted(kinds.items()):
            shard = self._of(key)
            assert shard is not None
            nothing = torch.empty(0, dtype=dtype)
            parts = shard.ranks.gather_parts(values.get(key, nothing), everywhere=False)
            flat = torch.cat(parts) if parts else nothing
            found[key] = flat.view(shard.shape) if parts and dims > 1 else flat
        return found

    def local_rows(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's rows of tensors of the parameters' shapes."""
        found = {}
        for name, value in values.items():
            shard = self._shards[name]
            found[name] = value if shard is None else value[shard.start : shard.stop]
        return found

    def local_values(
        self, values: Mapping[str, Tensor], bits: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """This rank's part of values that lie at the pruned places of parameters, and only there.

        Args:
            values: In flat-index order; a key may say more after the parameter's name (`MOMENT`).
            bits: Packed masks of whole parameters, by name.
        """
        found = {}
        for key, value in values.items():
            name = key.partition(MOMENT)[0]
            shard = self._shards.get(name)
            if shard is not None and name in bits:
                first, last = (pruned_before(bits[name], p) for p in _ends(shard.places))
                value = value[first:last]
            found[key] = value
        return found


def _ends(places: slice) -> tuple[int, int]:
    return places.start, places.stop
