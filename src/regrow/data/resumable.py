# SPDX-License-Identifier: MIT
"""Base class of loaders whose position is saved and restored; the order of an epoch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, TypedDict

import torch
from torch import Tensor, distributed

from regrow.utils.errors import StateError, check_count

Batch = tuple[Tensor, Tensor]
"""Images (N, C, H, W) for the model, and labels (N,)."""


class PositionState(TypedDict):
    """A position in the training data; the numbers of `identity()` are saved with it."""

    epoch: int
    batch: int  # that comes next
    skipped: int


class ResumableLoader(ABC):
    """Iterate over the batches of an epoch, with a position that can be saved and restored.

    Subclasses implement `batches` and `__len__`. A batch may depend on the settings, the epoch and
    the position only.

    Lightning does not wrap loaders that are no `DataLoader` and calls `set_epoch` on their
    `sampler`; a plain loop calls `set_epoch` itself. After `load_state_dict` the next iteration
    continues with the batch after the last one yielded, unless `set_epoch` selects another epoch.
    Mid-epoch resume beside a learning-rate schedule needs a data module that saves the position
    (`regrow.data.ResumableDataModule`), `RandomState` or a pruning callback.
    """

    batch_sampler = None  # Lightning expects one beside `sampler`

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size = check_count("batch_size", batch_size)
        self.seed = check_count("seed", seed, least=0)
        self._epoch = 0
        self._batch = 0  # batches of this epoch yielded so far
        self._resume = False
        self._loaded: int | None = None  # epoch of the restored state, until a batch is yielded
        self._skipped = 0  # epochs that Lightning counted without reading a batch

    @abstractmethod
    def __len__(self) -> int:
        """Batches of a whole epoch, also after a mid-epoch resume."""

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Yield the batches of an epoch from number `start`."""

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that nothing runs before the first batch is requested: Lightning creates
        # iterators before it sets the epoch or restores a state, and discards some.
        start = self._batch if self._resume else 0
        self._resume = False
        for batch, pair in enumerate(self.batches(self._epoch, start), start):
            self._batch, self._loaded = batch + 1, None
            yield pair

    def set_epoch(self, epoch: int) -> None:
        """Select the next epoch; the current one changes nothing.

        Lightning 2.6, resumed at the end of an epoch with `max_steps`, counts one epoch without
        batches. That epoch is skipped here, so that later ones have the same order as without the
        interruption.
        """
        epoch -= self._skipped
        if self._loaded is not None and epoch > self._epoch > self._loaded:
            self._skipped += epoch - self._epoch
        elif epoch != self._epoch:
            self._epoch, self._batch, self._resume = epoch, 0, False

    @property
    def sampler(self) -> ResumableLoader:
        """The loader itself: Lightning calls `set_epoch` on a loader's sampler."""
        return self

    def identity(self) -> dict[str, int]:
        """Return the settings that must be equal to resume in the middle of an epoch."""
        return {"batches": len(self), "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch and `identity()`, as builtin numbers."""
        position: PositionState = {
            "epoch": self._epoch,
            "batch": self._batch,
            "skipped": self._skipped,
        }
        return {**position, **self.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the saved position; within an epoch only with the same identity."""
        mine = self.identity()
        other = {name: value for name, value in mine.items() if state.get(name) != value}
        if state["batch"] < state["batches"] and other:
            raise StateError(
                f"the checkpoint was saved at batch {state['batch']} of an epoch of "
                f"{_format_identity(state, mine)}; this run has {_format_identity(mine, mine)}: "
                "resume with the same data, batch size, ranks and seed, or from a checkpoint at "
                "the end of an epoch"
            )
        self._epoch, self._batch, self._resume = state["epoch"], state["batch"], True
        self._loaded, self._skipped = state["epoch"], state["skipped"]


def _format_identity(state: dict[str, Any], names: dict[str, int]) -> str:
    """Format an identity, such as "4 batches with seed 0, workers 2"."""
    rest = ", ".join(f"{name} {state.get(name)}" for name in names if name != "batches")
    return f"{state['batches']} batches with {rest}"


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `key`, such as (seed, epoch, batch), alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    # manual_seed takes a signed 64-bit number
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def samples_per_rank(samples: int, world: int) -> int:
    """Return how many samples each of `world` ranks visits per epoch."""
    return -(-samples // world)


def epoch_order(
    samples: int, *, shuffle: bool, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> torch.Tensor:
    """Return the sample indices that one rank visits in one epoch, on the CPU.

    Rank r visits every `world`-th index from the r-th. If the samples do not divide evenly, the
    order wraps around, so that every rank has the same number of batches (collectives would
    deadlock otherwise).
    """
    if shuffle:
        order = torch.randperm(samples, generator=generator(seed, "order", epoch))
    else:
        order = torch.arange(samples)
    return order[torch.arange(rank, samples_per_rank(samples, world) * world, world) % samples]
