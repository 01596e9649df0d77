# SPDX-License-Identifier: MIT
"""Rows of a DTensor on this rank, and counts over all ranks.

FSDP2 keeps a parameter as a DTensor, sharded along its first dimension. Masks, scores and removed
values are sharded alike: each rank works on its rows; only counts and histograms are communicated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.distributed.collectives import Ranks
from regrow.utils.errors import ConfigError


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the local part of a DTensor without a copy, and any other tensor unchanged."""
    dtensor: Any = tensor
    local: Tensor = dtensor.to_local() if is_dtensor(tensor) else tensor
    return local


def is_dtensor(tensor: Tensor) -> bool:
    """Check for a DTensor by attribute, because its class is slow to import."""
    return hasattr(tensor, "to_local")


@dataclass(frozen=True)
class Shard:
    """The rows `[start, stop)` of a parameter, those of this rank."""

    shape: tuple[int, ...]  # of the whole parameter
    start: int
    stop: int
    ranks: Ranks  # those that hold its rows, in order

    @property
    def places(self) -> slice:
        """The flat indices of these rows in the whole parameter."""
        row = math.prod(self.shape[1:])
        return slice(self.start * row, self.stop * row)


def shard_of(name: str, parameter: Tensor) -> Shard | None:
    """Return the shard of a parameter on this rank; None for one that is not sharded."""
    if not is_dtensor(parameter):
        return None
    tensor: Any = parameter
    mesh = tensor.device_mesh
    sharded = [(dim, p) for dim, p in enumerate(tensor.placements) if not p.is_replicate()]
    if not sharded:
        raise ConfigError(
            f"{name} is a DTensor that every rank holds as a whole: leave it a plain parameter, or "
            f"write exclude=[{name!r}]"
        )
    [(dim, placement), *more] = sharded
    rows, size = parameter.shape[0] if parameter.dim() else 0, mesh.size(dim)
    rank, step = mesh.get_local_rank(dim), -(-rows // size)  # the last ranks may have none
    start, stop = min(rank * step, rows), min((rank + 1) * step, rows)
    plain = type(placement).__name__ == "Shard" and placement.is_shard(0)
    if more or not plain or len(local_tensor(parameter)) != stop - start:
        raise ConfigError(
            f"{name} is sharded as {tuple(tensor.placements)}: parameters must be sharded by "
            "fully_shard along their first dimension, once (no tensor parallelism, no "
            f"shard_placement_fn); write exclude=[{name!r}], or shard it this way"
        )
    ranks = Ranks(mesh.get_group(dim), rank, size, torch.device(mesh.device_type))
    return Shard(tuple(parameter.shape), start, stop, ranks)


def to_dtensor_like(whole: Tensor, part: Tensor) -> Tensor:
    """Make a DTensor of this rank's rows, sharded like `whole`; a plain one stays as it is."""
    if not is_dtensor(whole):
        return part
    from torch.distributed.tensor import DTensor

    like: Any = whole
    return DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=whole.shape,
        stride=torch.empty(whole.shape, device="meta").stride(),
    )


def reshard_fsdp(model: nn.Module) -> None:
    """Free the unsharded parameters that FSDP2 keeps after a forward pass without a backward one.

    The next pass would use them instead of what was written into the shards since.
    """
    for module in model.modules():
        fsdp: Any = module
        if hasattr(fsdp, "reshard") and hasattr(fsdp, "unshard"):  # torch's FSDPModule
            fsdp.reshard()


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
