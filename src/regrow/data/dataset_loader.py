# SPDX-License-Identifier: MIT
"""Loader of a map-style dataset, with a seed for each sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from regrow.data.resumable import (
    ResumableLoader,
    epoch_order,
    generator,
    rank_and_world,
    samples_per_rank,
)
from regrow.utils.errors import ConfigError, check_bool

# Arguments of DataLoader that this module decides.
_DECIDED = ("sampler", "batch_sampler", "generator", "persistent_workers")


@contextmanager
def seed_generators(seed: int) -> Iterator[None]:
    """Seed the global CPU generators of torch, NumPy and `random`, and restore them afterwards."""
    numpy, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would seed the accelerators too
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)


class _SeededSamples(Dataset[tuple[int, Any]]):
    """The samples of one epoch, each with its seed and read under it."""

    def __init__(self, dataset: Any, seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __getitem__(self, index: int) -> tuple[int, Any]:
        seed = generator(self.seed, "sample", self.epoch, index).initial_seed()
        with seed_generators(seed):
            return seed, self.dataset[index]


def _seeded_collate(collate: Callable[[list[Any]], Any], samples: list[tuple[int, Any]]) -> Any:
    """Collate the samples of a batch, with draws that depend on its first sample's seed."""
    with seed_generators(generator(samples[0][0], "collate").initial_seed()):
        return collate([sample for _, sample in samples])


class DatasetLoader(ResumableLoader):
    """Iterate over batches of any map-style dataset; order, ranks and resume as in `BatchLoader`.

    Before a sample is read, the global CPU generators of torch, NumPy and `random` are seeded from
    (seed, epoch, index), and restored afterwards: augmentation that draws from them depends neither
    on the number of workers nor on a resume. A dataset with generators of its own may seed them
    with `torch.initial_seed()`, which is this sample's seed. `collate_fn` is seeded likewise.
    Workers live for one epoch.

    Args:
        dataset: Has `__len__`, and `__getitem__` for the indices from 0.
        batch_size: Samples per batch and rank; the last batch may be smaller.
        shuffle: Whether to shuffle each epoch.
        drop_last: Whether to drop a smaller last batch.
        seed: Seed of the order and of the samples.
        collate_fn: Makes a batch of a list of samples; None: `default_collate`.
        **loading: Other arguments of `torch.utils.data.DataLoader`, such as `num_workers`.

    Raises:
        ConfigError: For a dataset that is not map-style or leaves no batch, or an invalid argument.

    Example:
        >>> loader = DatasetLoader([1.0, 2.0, 3.0], batch_size=2)
        >>> [batch.tolist() for batch in loader]
        [[1.0, 2.0], [3.0]]
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(batch_size, seed)
        check_map_style("dataset", dataset)
        if wrong := [name for name in _DECIDED if name in loading]:
            raise ConfigError(
                f"{', '.join(wrong)} cannot be set: the order is a function of seed= and the "
                "epoch, and workers live for one epoch; write shuffle=, seed=, num_workers="
            )
        self.dataset = dataset
        self.shuffle = check_bool("shuffle", shuffle)
        self.drop_last = check_bool("drop_last", drop_last)
        collate = partial(_seeded_collate, collate_fn or default_collate)
        self.loading = loading | {"collate_fn": collate}
        if len(self) == 0:
            raise ConfigError(
                f"batch_size={batch_size} with drop_last={drop_last} leaves no batch of "
                f"{len(dataset)} samples"
            )
        self._make_loader([], 0)  # checks `loading`

    def __len__(self) -> int:
        count = samples_per_rank(len(self.dataset), rank_and_world()[1])
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def identity(self) -> dict[str, int]:
        size = {"samples": len(self.dataset), "batch size": self.batch_size}
        return super().identity() | size | {"shuffle": int(self.shuffle)}

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        rank, world = rank_and_world()
        samples = len(self.dataset)
        order = epoch_order(
            samples, shuffle=self.shuffle, seed=self.seed, epoch=epoch, rank=rank, world=world
        )
        parts = torch.split(order, self.batch_size)[start : len(self)]
        yield from self._make_loader([part.tolist() for part in parts], epoch)

    def _make_loader(self, batches: list[list[int]], epoch: int) -> DataLoader[Any]:
        samples = _SeededSamples(self.dataset, self.seed, epoch)
        # its own generator, so that seeds of workers are not drawn from the global one
        return DataLoader(
            samples, batch_sampler=batches, generator=torch.Generator(), **self.loading
        )


def check_map_style(what: str, dataset: Any) -> None:
    """Check that a dataset has a length and is read by index."""
    if isinstance(dataset, (IterableDataset, DataLoader)) or not (
        hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    ):
        raise ConfigError(
            f"{what} must be a map-style dataset, with __len__ and __getitem__, got "
            f"{type(dataset).__name__}: the order of other ones cannot be restored; write a "
            "torch.utils.data.Dataset, or pass your loader to fit directly"
        )
