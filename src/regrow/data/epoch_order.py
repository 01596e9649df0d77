# SPDX-License-Identifier: MIT
"""The order of an epoch as a function of (seed, epoch)."""

from __future__ import annotations

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `key`, such as (seed, epoch, batch), alone.

    Example:
        >>> a, b = generator(0, "crop", 7), generator(0, "crop", 7)
        >>> bool(torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b)))
        True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    # manual_seed takes a signed 64-bit number
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def samples_per_rank(samples: int, world: int) -> int:
    """Return how many samples each of `world` ranks visits per epoch."""
    return -(-samples // world)


def epoch_order(
    samples: int, *, shuffle: bool, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> torch.Tensor:
    """Return the sample indices that one rank visits in one epoch.

    Rank r visits every `world`-th index from the r-th. If the samples do not divide evenly, the
    order wraps around, so that every rank has the same number of batches (collectives would
    deadlock otherwise).

    Returns:
        Indices in [0, samples), shape (ceil(samples / world),), int64, on the CPU.

    Example:
        >>> epoch_order(5, shuffle=False, seed=0, epoch=0, rank=1, world=2)
        tensor([1, 3, 0])
    """
    if shuffle:
        order = torch.randperm(samples, generator=generator(seed, "order", epoch))
    else:
        order = torch.arange(samples)
    return order[torch.arange(rank, samples_per_rank(samples, world) * world, world) % samples]
