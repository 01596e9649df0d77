# SPDX-License-Identifier: MIT
"""Sharded parameters: the rows that this rank holds, and what it must ask of the other ranks.

FSDP2 keeps a parameter as a DTensor, cut along its first dimension. Masks, scores and removed
values are cut alike: each rank works on its own rows, and only counts and histograms travel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from regrow.errors import ConfigError


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, without a copy: itself, where it is whole.

    Example:
        >>> weight = torch.ones(2)
        >>> local(weight) is weight
        True
    """
    whole: Any = tensor
    part: Tensor = whole.to_local() if is_cut(tensor) else tensor
    return part


def is_cut(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; asked of its attributes, for the class is slow to import.

    Example:
        >>> is_cut(torch.ones(2))
        False
    """
    return hasattr(tensor, "to_local")


@dataclass(frozen=True)
class Ranks:
    """The processes that hold parts of the same parameters.

    Attributes:
        group: Theirs.
        rank: The place of this one among them.
        size: How many they are.
        device: Where tensors that travel must lie.
    """

    group: dist.ProcessGroup
    rank: int
    size: int
    device: torch.device

    def sum(self, counts: Any) -> Any:
        """The sum over ranks of an array of whole numbers; one all-reduce."""
        sent = torch.as_tensor(np.ascontiguousarray(counts, np.int64)).to(self.device, copy=True)
        dist.all_reduce(sent, group=self.group)
        return sent.cpu().numpy()

    def each(self, counts: Sequence[int]) -> Any:
        """Every rank's whole numbers, one row a rank."""
        sent = torch.tensor(counts, dtype=torch.int64, device=self.device)
        got = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(got, sent, group=self.group)
        return torch.stack(got).cpu().numpy()

    def objects(self, own: Any) -> list[Any]:
        """Small things of every rank."""
        got: list[Any] = [None] * self.size
        dist.all_gather_object(got, own, group=self.group)
        return got

    def parts(self, part: Tensor, everywhere: bool) -> list[Tensor]:
        """The parts of all ranks, flat, in host memory.

        Args:
            part: This rank's; of any length.
            everywhere: Whether all ranks get it, or the first alone (the others nothing).
        """
        held = part.detach().reshape(-1).contiguous().view(torch.uint8).to(self.device)
        lengths = self.each([len(held)])[:, 0].tolist()
        sent = held.new_zeros(max(*lengths, 1))
        sent[: len(held)] = held
        got = [torch.empty_like(sent) for _ in lengths] if everywhere or not self.rank else None
        if everywhere:
            dist.all_gather(got, sent, group=self.group)
        else:
            dist.gather(sent, got, group=self.group, group_dst=0)
        pairs = zip(got or [], lengths, strict=bool(got))
        return [piece[:length].cpu().view(part.dtype) for piece, length in pairs]


@dataclass(frozen=True)
class Shard:
    """The rows `[start, stop)` of one parameter, which this rank holds.

    Attributes:
        shape: Of the whole parameter.
        ranks: Who holds the other rows, in their order.
    """

    shape: tuple[int, ...]
    start: int
    stop: int
    ranks: Ranks

    @property
    def places(self) -> slice:
        """The flat indices of these rows in the whole parameter."""
        row = math.prod(self.shape[1:])
        return slice(self.start * row, self.stop * row)


def shard_of(name: str, parameter: Tensor) -> Shard | None:
    """The part of a parameter that this rank holds; None where it is whole.

    Raises:
        ConfigError: For a parameter that is cut along another dimension than its first, or twice.
    """
    if not is_cut(parameter):
        return None
    tensor: Any = parameter
    mesh = tensor.device_mesh
    cuts = [(dim, cut) for dim, cut in enumerate(tensor.placements) if not cut.is_replicate()]
    if not cuts:
        raise ConfigError(
            f"{name} is a DTensor that every rank holds as a whole: leave it a plain parameter, or "
            f"write exclude=[{name!r}]"
        )
    [(dim, placement), *more] = cuts
    rows, size = parameter.shape[0] if parameter.dim() else 0, mesh.size(dim)
    rank, step = mesh.get_local_rank(dim), -(-rows // size)  # the last ranks may have none
    start, stop = min(rank * step, rows), min((rank + 1) * step, rows)
    plain = type(placement).__name__ == "Shard" and placement.is_shard(0)
    if more or not plain or len(local(parameter)) != stop - start:
        raise ConfigError(
            f"{name} is cut as {tuple(tensor.placements)}: masks follow parameters that "
            "fully_shard cuts along their first dimension, once (no tensor parallelism, no "
            f"shard_placement_fn); write exclude=[{name!r}], or shard it so"
        )
    ranks = Ranks(mesh.get_group(dim), rank, size, torch.device(mesh.device_type))
    return Shard(tuple(parameter.shape), start, stop, ranks)


def as_part_of(whole: Tensor, part: Tensor) -> Tensor:
    """This rank's rows as a tensor that is cut like `whole`; the part itself, where that is whole.

    Example:
        >>> as_part_of(torch.ones(2), torch.zeros(2))
        tensor([0., 0.])
    """
    if not is_cut(whole):
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


class Everywhere:
    """Counts over all ranks that hold parts of some tensors; of this one alone without parts.

    Args:
        shards: The rows of each tensor that this rank holds; None: all, as every rank does.

    Attributes:
        ranks: Who holds parts; None where nothing is cut.

    Example:
        >>> Everywhere([None, None]).sums([1, 2])
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
        every, found = self.ranks.each(own), []
        for place, index in enumerate(indices):
            cut, column = self.shards[index] is not None, every[:, place]
            before = int(column[: self.ranks.rank].sum()) if cut else 0
            found.append(min(max(0, total - before), own[place]))
            total = max(0, total - (int(column.sum()) if cut else own[place]))
        return found


def forget_copies(model: nn.Module) -> None:
    """Frees the whole parameters that FSDP2 keeps after a forward pass without a backward one.

    The next pass would compute with them, and not with what was written into the shards since.
    """
    for module in model.modules():
        part: Any = module
        if hasattr(part, "reshard") and hasattr(part, "unshard"):  # torch's FSDPModule
            part.reshard()
