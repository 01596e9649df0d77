# SPDX-License-Identifier: MIT
"""Loader of image files that worker processes decode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regrow.app.data.image_transforms import Transform
from regrow.data.dataset_loader import seed_generators
from regrow.data.resumable import (
    Batch,
    ResumableLoader,
    epoch_order,
    generator,
    rank_and_world,
    samples_per_rank,
)

Finish = Callable[[Tensor, Tensor], Batch]
"""A batch of uint8 images and labels -> normalized, on the training device."""


@dataclass(frozen=True)
class WorkerConfig:
    """How worker processes transform images.

    Attributes:
        transform: From a decoded image to its pixels; may draw from global generators.
        finish: Applied to each batch in the training process.
        workers: Processes per rank; 0 reads in the training process.
        pin: Whether batches are copied to pinned memory.
    """

    transform: Transform
    finish: Finish
    workers: int = 0
    pin: bool = False

    def transform_with(self, image: Any, *key: int | str) -> Tensor:
        """Transform one image, with draws that depend on the key alone."""
        with seed_generators(generator(*key).initial_seed()):
            return self.transform(image)

    def load(self, dataset: Dataset[Any], **batching: Any) -> Iterator[Batch]:
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


class _TransformedImages(Dataset[tuple[Tensor, int]]):
    """The images of one epoch, each transformed with draws of its own."""

    def __init__(self, images: Any, config: WorkerConfig, seed: int, epoch: int) -> None:
        self.images, self.config, self.seed, self.epoch = images, config, seed, epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.config.transform_with(image, self.seed, "image", self.epoch, index), label


class ImageLoader(ResumableLoader):
    """Iterate over batches of image files; order, ranks and resume are as in `BatchLoader`.

    The augmentation of an image depends on (seed, epoch, index) only, not on the number of workers
    or on a resume. Workers live for one epoch. `images` is a map-style dataset of decoded images
    and labels, of which the loader reads those of `indices`.
    """

    def __init__(
        self,
        images: Any,
        indices: Tensor,
        config: WorkerConfig,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
    ) -> None:
        super().__init__(batch_size, seed)
        self.images = images
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
        dataset = _TransformedImages(self.images, self.config, self.seed, epoch)
        yield from self.config.load(dataset, batch_sampler=[part.tolist() for part in parts])
