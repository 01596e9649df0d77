# SPDX-License-Identifier: MIT
"""One hash of weights and masks per rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regrow.distributed.shard import is_dtensor, local_tensor
from regrow.utils.bits import integer_type

CHUNK = 1 << 20  # weights at a time, 16 temporary bytes each
_FACTOR = 6364136223846793005  # Knuth's multiplier of a linear congruential generator modulo 2^64


def fingerprint(
    parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor | None], *, cut: bool = False
) -> int:
    """Hash the bits of all weights and masks; equal states have equal hashes.

    With odd random factors r and s, fixed for each position of a chunk, a chunk's hash is
    `sum(r * bits + s * kept)` modulo 2^64; hashes of chunks are chained. States that differ in one
    element never collide, others with probability of about 2^-63.

    With `cut` this rank's rows of sharded parameters are hashed, which only its replicas share
    (HSDP), instead of the parameters that every rank has whole.
    """
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (2, CHUNK), generator=generator) * 2 + 1
    result = 0
    for name, parameter in parameters.items():
        kept = masks[name]
        if is_dtensor(parameter) != cut:
            continue
        flat = local_tensor(parameter.detach()).reshape(-1)
        mask = None if kept is None else kept.reshape(-1)
        for start in range(0, flat.numel(), CHUNK):
            part = flat[start : start + CHUNK]
            r, s = factors[:, : part.numel()].to(part.device)
            total = (part.view(integer_type(part.dtype)).long() * r).sum()
            if mask is not None:
                total = total + s[mask[start : start + CHUNK] != 0].sum()
            result = _chain(result, int(total))
        result = _chain(result, -1 if kept is None else 1)
    return result


def _chain(previous: int, value: int) -> int:
    mixed = (previous * _FACTOR + value) % 2**64
    return mixed - 2**64 if mixed >= 2**63 else mixed
