# SPDX-License-Identifier: MIT
"""Loader of image files that worker processes decode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regrow.app.data.loading.epoch_order import epoch_order, generator, samples_per_rank
from regrow.app.data.loading.resumable import Batch, ResumableLoader, rank_and_world
from regrow.app.data.transforms.decode import Pixels, decode
from regrow.utils.errors import check_count

Finish = Callable[[Tensor, Tensor], Batch]
"""A batch of uint8 images and labels -> normalized, on the training device."""


class Source(Protocol):
    """Image files with random access, picklable for worker processes.

    Attributes:
        labels: int64, shape (images,).
    """

    labels: Tensor

    def read(self, index: int) -> bytes:
        """Return the bytes of one image file."""

    def name(self, index: int) -> str:
        """Return the location of one image, for messages."""


@dataclass(frozen=True)
class WorkerConfig:
    """How worker processes decode images.

    Attributes:
        pixels: From a decoded image to its pixels.
        finish: Applied to each batch in the training process.
        workers: Processes per rank; 0 reads in the training process.
        pin: Whether batches are copied to pinned memory.
    """

    pixels: Pixels
    finish: Finish
    workers: int = 0
    pin: bool = False

    def __post_init__(self) -> None:
        check_count("num_workers", self.workers, least=0)

    def load(self, dataset: Dataset[Batch], **batching: Any) -> Iterator[Batch]:
        """Yield the batches of a `DataLoader`, without drawing from global generators."""
        loader = DataLoader(
            dataset,
            num_workers=self.workers,
            pin_memory=self.pin,
            generator=torch.Generator(),  # seeds the workers
            **batching,
        )
        for images, labels in loader:
            yield self.finish(images, labels)


class _DecodedImages(Dataset[Batch]):
    """The images of one epoch by their index in the source."""

    def __init__(self, source: Source, pixels: Pixels, seed: int, epoch: int) -> None:
        self.source, self.pixels, self.seed, self.epoch = source, pixels, seed, epoch

    def __getitem__(self, index: int) -> Batch:
        image = decode(self.source.read(index), self.source.name(index))
        random = generator(self.seed, "image", self.epoch, index)
        return self.pixels(image, random), self.source.labels[index]


class ImageLoader(ResumableLoader):
    """Iterate over batches of image files; order, ranks and resume are as in `BatchLoader`.

    The augmentation of an image depends on (seed, epoch, index) only, not on the number of workers
    or on a resume. Workers live for one epoch.

    Args:
        source: The image files.
        indices: The images to load, shape (samples,).
        config: Decoding by worker processes.
        batch_size: Images per batch and rank; the last batch may be smaller.
        shuffle: Whether to shuffle each epoch.
        seed: Seed of the run.
    """

    def __init__(
        self,
        source: Source,
        indices: Tensor,
        config: WorkerConfig,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
    ) -> None:
        super().__init__(batch_size, seed)
        self.source = source
        self.indices = indices
        self.config = config
        self.shuffle = shuffle

    def __len__(self) -> int:
        return math.ceil(samples_per_rank(len(self.indices), rank_and_world()[1]) / self.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        rank, world = rank_and_world()
        samples = len(self.indices)
        order = epoch_order(
            samples, shuffle=self.shuffle, seed=self.seed, epoch=epoch, rank=rank, world=world
        )
        parts = torch.split(self.indices[order], self.batch_size)[start:]
        dataset = _DecodedImages(self.source, self.config.pixels, self.seed, epoch)
        yield from self.config.load(dataset, batch_sampler=[part.tolist() for part in parts])
