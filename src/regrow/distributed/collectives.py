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
    """The processes among which parameters are sharded."""

    group: dist.ProcessGroup
    rank: int  # of this process in the group
    size: int
    device: torch.device  # where tensors must be to be communicated

    def sum(self, counts: Any) -> Any:
        """Sum an integer array over ranks; one all-reduce."""
        sent = torch.as_tensor(np.ascontiguousarray(counts, np.int64)).to(self.device, copy=True)
        dist.all_reduce(sent, group=self.group)
        return sent.cpu().numpy()

    def all_gather_ints(self, counts: Sequence[int]) -> Any:
        """Gather the integers of all ranks, one row a rank."""
        sent = torch.tensor(counts, dtype=torch.int64, device=self.device)
        got = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(got, sent, group=self.group)
        return torch.stack(got).cpu().numpy()

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Gather one picklable object of every rank."""
        got: list[Any] = [None] * self.size
        dist.all_gather_object(got, value, group=self.group)
        return got

    def gather_parts(self, part: Tensor, everywhere: bool) -> list[Tensor]:
        """Gather tensors of any length, flat, in host memory: on all ranks, or the first alone."""
        data = part.detach().reshape(-1).contiguous().view(torch.uint8).to(self.device)
        lengths = self.all_gather_ints([len(data)])[:, 0].tolist()
        sent = data.new_zeros(max(*lengths, 1))
        sent[: len(data)] = data
        got = [torch.empty_like(sent) for _ in lengths] if everywhere or not self.rank else None
        if everywhere:
            dist.all_gather(got, sent, group=self.group)
        else:
            dist.gather(sent, got, group=self.group, group_dst=0)
        pairs = zip(got or [], lengths, strict=bool(got))
        return [piece[:length].cpu().view(part.dtype) for piece, length in pairs]
