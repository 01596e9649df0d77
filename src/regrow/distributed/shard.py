# SPDX-License-Identifier: MIT
"""Rows of a DTensor held by this rank.

FSDP2 keeps a parameter as a DTensor, cut along its first dimension. Masks, scores and removed
values are cut alike: each rank works on its own rows, and only counts and histograms travel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.distributed.collectives import Ranks
from regrow.utils.errors import ConfigError


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, without a copy: itself, where it is whole.

    Example:
        >>> weight = torch.ones(2)
        >>> local_tensor(weight) is weight
        True
    """
    whole: Any = tensor
    part: Tensor = whole.to_local() if is_dtensor(tensor) else tensor
    return part


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; asked of its attributes, for the class is slow to import.

    Example:
        >>> is_dtensor(torch.ones(2))
        False
    """
    return hasattr(tensor, "to_local")


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
    if not is_dtensor(parameter):
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
    if more or not plain or len(local_tensor(parameter)) != stop - start:
        raise ConfigError(
            f"{name} is cut as {tuple(tensor.placements)}: masks follow parameters that "
            "fully_shard cuts along their first dimension, once (no tensor parallelism, no "
            f"shard_placement_fn); write exclude=[{name!r}], or shard it so"
        )
    ranks = Ranks(mesh.get_group(dim), rank, size, torch.device(mesh.device_type))
    return Shard(tuple(parameter.shape), start, stop, ranks)


def to_dtensor_like(whole: Tensor, part: Tensor) -> Tensor:
    """This rank's rows as a tensor that is cut like `whole`; the part itself, where that is whole.

    Example:
        >>> to_dtensor_like(torch.ones(2), torch.zeros(2))
        tensor([0., 0.])
    """
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
    """Frees the whole parameters that FSDP2 keeps after a forward pass without a backward one.

    The next pass would compute with them, and not with what was written into the shards since.
    """
    for module in model.modules():
        part: Any = module
        if hasattr(part, "reshard") and hasattr(part, "unshard"):  # torch's FSDPModule
            part.reshard()
