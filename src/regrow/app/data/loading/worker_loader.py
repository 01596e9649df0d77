# SPDX-License-Identifier: MIT
"""Images decoded by workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regrow.app.data.loading.epoch_order import epoch_order, generator, share
from regrow.app.data.loading.resumable import Batch, ResumableLoader, rank_and_world
from regrow.app.data.transforms.decode import Pixels, decode
from regrow.utils.errors import check_count

Finish = Callable[[Tensor, Tensor], Batch]
"""A batch of uint8 images and labels -> normalised, on the training device."""


class Source(Protocol):
    """Image files that can be read in any order, by any process.

    Attributes:
        labels: int64, shape (images,).
    """

    labels: Tensor

    def read(self, index: int) -> bytes:
        """The bytes of one image file."""

    def name(self, index: int) -> str:
        """Where it lies, for messages."""


class _Decoded(Dataset[Batch]):
    """One epoch's images by their number in the source: what a worker process gets."""

    def __init__(self, source: Source, pixels: Pixels, seed: int, epoch: int) -> None:
        self.source, self.pixels, self.seed, self.epoch = source, pixels, seed, epoch

    def __getitem__(self, index: int) -> Batch:
        image = decode(self.source.read(index), self.source.name(index))
        drawn = generator(self.seed, "image", self.epoch, index)
        return self.pixels(image, drawn), self.source.labels[index]


class ImageLoader(ResumableLoader):
    """Iterates over batches of image files; order, ranks and resuming are as in `BatchLoader`.

    An image's augmentation depends on (seed, epoch, its number) alone: neither the number of worker
    processes nor a resume changes a pixel. Workers live for one epoch. No global generator is used.

    Args:
        source: The files.
        indices: Which of them, shape (samples,).
        pixels: From a decoded image to its pixels.
        finish: Applied to each batch, in the training process.
        batch_size: Images a batch and rank; the last batch may be smaller.
        shuffle: Whether each epoch has an order of its own.
        seed: The run's seed.
        workers: Processes that read ahead; 0 reads in the training process.
        pin: Whether batches are put where an accelerator can fetch them by itself.
    """

    def __init__(
        self,
        source: Source,
        indices: Tensor,
        *,
        pixels: Pixels,
        finish: Finish,
        batch_size: int,
        shuffle: bool,
        seed: int,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        super().__init__(batch_size, seed)
        self.source = source
        self.indices = indices
        self.pixels = pixels
        self.finish = finish
        self.shuffle = shuffle
        self.workers = check_count("num_workers", workers, least=0)
        self.pin = pin

    def __len__(self) -> int:
        return math.ceil(share(len(self.indices), rank_and_world()[1]) / self.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        rank, world = rank_and_world()
        samples = len(self.indices)
        order = epoch_order(
            samples, shuffle=self.shuffle, seed=self.seed, epoch=epoch, rank=rank, world=world
        )
        parts = torch.split(self.indices[order], self.batch_size)[start:]
        loader = DataLoader(
            _Decoded(self.source, self.pixels, self.seed, epoch),
            batch_sampler=[part.tolist() for part in parts],
            num_workers=self.workers,
            pin_memory=self.pin,
            generator=torch.Generator(),  # it draws its workers' seeds, from no one else's numbers
        )
        for images, labels in loader:
            yield self.finish(images, labels)
