# SPDX-License-Identifier: MIT
"""Sharding of a model's parameters: gather, and select this rank's part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from regrow.distributed.collectives import Ranks
from regrow.distributed.shard import (
    Shard,
    ShardedCounts,
    is_dtensor,
    local_tensor,
    shard_of,
    to_dtensor_like,
)
from regrow.utils.bits import pruned_before
from regrow.utils.errors import ConfigError

MOMENT = "::"  # separates a parameter's name from the name of its moment


class Shards(dict[str, Shard | None]):
    """The shard of each parameter by name; None for parameters that are not sharded."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__({name: shard_of(name, p) for name, p in parameters.items()})
        self._parameters = dict(parameters)
        self._keeps_sharded = False
        self.ranks: Ranks | None = None  # those that hold the shards, if there are any
        for name, shard in self.items():
            if shard is None:
                continue
            self.ranks = self.ranks or shard.ranks
            if shard.ranks.group != self.ranks.group:
                raise ConfigError(
                    f"{name} is sharded over other ranks than the parameters before it: shard all "
                    f"pruned parameters over one mesh, or write exclude=[{name!r}]"
                )

    def _shard(self, key: str) -> Shard | None:
        return self.get(key.partition(MOMENT)[0])

    def sums(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Sum counts per parameter over the shards; one all-reduce."""
        totals = ShardedCounts([self[name] for name in counts]).sums(counts.values())
        return dict(zip(counts, totals, strict=True))

    @contextmanager
    def keep_sharded(self) -> Iterator[None]:
        """Make `gather` return DTensors meanwhile, which a sharded checkpoint stores by rank."""
        self._keeps_sharded = True
        try:
            yield
        finally:
            self._keeps_sharded = False

    def gather(
        self, values: Mapping[str, Tensor], mask_of: Callable[[str], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Gather tensors of the parameters' shapes on the first rank, one at a time.

        Keys name a parameter or one of its moments (`MOMENT`). Flat tensors, with `mask_of` the
        values of pruned weights, are concatenated; the other ranks receive empty tensors. Within
        `keep_sharded` every rank receives DTensors of the parameters' shapes, sharded alike, in
        host memory.
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
            if self._keeps_sharded:
                gathered[key] = self._as_dtensor(key, shard, values.get(key), dtype, mask_of)
                continue
            nothing = torch.empty(0, dtype=dtype)
            parts = shard.ranks.gather_parts(values.get(key, nothing), everywhere=False)
            flat = torch.cat(parts) if parts else nothing
            gathered[key] = flat.view(shard.shape) if parts and dims > 1 else flat
        return gathered

    def _as_dtensor(
        self,
        key: str,
        shard: Shard,
        value: Tensor | None,
        dtype: torch.dtype,
        mask_of: Callable[[str], Tensor] | None,
    ) -> Tensor:
        """Make a DTensor of this rank's values; zeros where only other ranks have any."""
        name = key.partition(MOMENT)[0]
        part = torch.zeros((shard.stop - shard.start, *shard.shape[1:]), dtype=dtype)
        if value is not None and mask_of is not None:
            part.masked_scatter_(~mask_of(name).cpu(), value.cpu())
        elif value is not None:
            part.copy_(value)
        # a DTensor is made on its mesh's device
        return to_dtensor_like(self._parameters[name], part).cpu()

    def local_rows(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Select this rank's rows of tensors of the parameters' shapes."""
        return {key: self._rows(key, value) for key, value in values.items()}

    def local_values(
        self,
        values: Mapping[str, Tensor],
        bits: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Select this rank's part of the values of pruned weights, flat.

        `values` is the result of `gather` with `mask_of`, in flat-index order or in the parameters'
        shapes; `bits` are packed masks of whole parameters, `masks` this rank's.
        """
        selected = {}
        for key, value in values.items():
            name = key.partition(MOMENT)[0]
            shard, mask = self.get(name), masks.get(name)
            if mask is not None and value.shape == (mask.shape if shard is None else shard.shape):
                # a flat one of this shape has all values, so that both readings agree
                value = self._rows(key, value)[~mask]
            elif shard is not None and name in bits:
                first = pruned_before(bits[name], shard.places.start)
                value = value[first : pruned_before(bits[name], shard.places.stop)]
            selected[key] = value
        return selected

    def _rows(self, key: str, value: Tensor) -> Tensor:
        shard = self._shard(key)
        if shard is None or is_dtensor(value):
            return local_tensor(value)
        return value[shard.start : shard.stop]
