# SPDX-License-Identifier: MIT
"""One hash of weights and masks per rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regrow.distributed.shard import is_dtensor, local_tensor
from regrow.utils.bits import integer_type

CHUNK = 1 << 20  # so many weights at once: 16 bytes each, for a moment


_FACTOR = 6364136223846793005  # Knuth's, of a linear congruential generator modulo 2^64


def fingerprint(
    parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor | None], *, cut: bool = False
) -> int:
    """A hash of all weights' bits and masks, in order; equal states have equal hashes.

    With odd random factors r and s, fixed for each place of a chunk, a chunk's hash is
    `sum(r * bits + s * kept)` modulo 2^64; hashes of chunks are chained.

    Args:
        parameters: The parameters by name.
        masks: Their masks, non-zero = kept; None where nothing is pruned.
        cut: Of this rank's rows of sharded parameters, which those ranks alone share that hold the
            same rows (HSDP), instead of parameters that every rank holds.

    Returns:
        A number in [-2^63, 2^63). Two states that differ in one place never share it; others do
        with a chance of about 2^-63.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> weights = {"weight": layer.weight}
        >>> before = fingerprint(weights, {"weight": None})
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> before == fingerprint(weights, {"weight": mask})
        False
    """
    drawn = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (2, CHUNK), generator=drawn) * 2 + 1
    found = 0
    for name, parameter in parameters.items():
        kept = masks[name]
        if is_dtensor(parameter) != cut:
            continue
        flat = local_tensor(parameter.detach()).reshape(-1)
        whole = None if kept is None else kept.reshape(-1)
        for start in range(0, flat.numel(), CHUNK):
            part = flat[start : start + CHUNK]
            by = factors[:, : part.numel()].to(part.device)
            total = (_bits(part) * by[0]).sum()
            if whole is not None:
                total = total + by[1][whole[start : start + CHUNK] != 0].sum()
            found = _chained(found, int(total))
        found = _chained(found, -1 if kept is None else 1)
    return found


def _bits(part: Tensor) -> Tensor:
    return part.view(integer_type(part.dtype)).long()


def _chained(so_far: int, value: int) -> int:
    mixed = (so_far * _FACTOR + value) % 2**64
    return mixed - 2**64 if mixed >= 2**63 else mixed
