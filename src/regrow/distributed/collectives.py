# SPDX-License-Identifier: MIT
"""Sums, gathers and prefix shares over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


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

    def all_gather_ints(self, counts: Sequence[int]) -> Any:
        """Every rank's whole numbers, one row a rank."""
        sent = torch.tensor(counts, dtype=torch.int64, device=self.device)
        got = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(got, sent, group=self.group)
        return torch.stack(got).cpu().numpy()

    def all_gather_objects(self, own: Any) -> list[Any]:
        """Small things of every rank."""
        got: list[Any] = [None] * self.size
        dist.all_gather_object(got, own, group=self.group)
        return got

    def gather_parts(self, part: Tensor, everywhere: bool) -> list[Tensor]:
        """The parts of all ranks, flat, in host memory.

        Args:
            part: This rank's; of any length.
            everywhere: Whether all ranks get it, or the first alone (the others nothing).
        """
        held = part.detach().reshape(-1).contiguous().view(torch.uint8).to(self.device)
        lengths = self.all_gather_ints([len(held)])[:, 0].tolist()
        sent = held.new_zeros(max(*lengths, 1))
        sent[: len(held)] = held
        got = [torch.empty_like(sent) for _ in lengths] if everywhere or not self.rank else None
        if everywhere:
            dist.all_gather(got, sent, group=self.group)
        else:
            dist.gather(sent, got, group=self.group, group_dst=0)
        pairs = zip(got or [], lengths, strict=bool(got))
        return [piece[:length].cpu().view(part.dtype) for piece, length in pairs]
