# SPDX-License-Identifier: MIT
"""Order of an epoch as a function of (seed, epoch)."""

from __future__ import annotations

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose numbers depend on `key` alone: the same in every process and version.

    Args:
        key: What the numbers are for, such as (seed, epoch, batch).

    Example:
        >>> a, b = generator(0, "crop", 7), generator(0, "crop", 7)
        >>> bool(torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b)))
        True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    # manual_seed takes a signed 64-bit number
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def share(samples: int, world: int) -> int:
    """How many samples each of `world` ranks sees in an epoch: the same for all."""
    return -(-samples // world)


def epoch_order(
    samples: int, *, shuffle: bool, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> torch.Tensor:
    """The sample indices that one rank visits in one epoch.

    Rank r takes every `world`-th index from the r-th on. Where the samples do not divide evenly,
    the first ones of the order are visited once more, so that every rank does the same number of
    batches (else collectives would wait for ever).

    Args:
        samples: Size of the data set.
        shuffle: False visits the samples as they lie.
        seed: The run's seed.
        epoch: Counted from 0.
        rank: Of this process.
        world: Number of processes.

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
    return order[torch.arange(rank, share(samples, world) * world, world) % samples]
