# SPDX-License-Identifier: MIT
"""Batches of in-memory tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from regrow.app.data.loading.epoch_order import epoch_order, generator, share
from regrow.app.data.loading.resumable import Batch, ResumableLoader
from regrow.app.data.loading.resumable import rank_and_world as _rank_and_world
from regrow.utils.errors import ConfigError

Transform = Callable[[Tensor, torch.Generator], Tensor]
"""Images (N, C, H, W) and this batch's own generator -> images (N, C, H, W) for the model."""


class BatchLoader(ResumableLoader):
    """Iterates over `(images, labels)` batches without worker processes or global generators.

    Which samples a batch holds depends on (seed, epoch, batch), and so does its augmentation.
    Batches are picked on the device where the tensors lie. In distributed training each rank takes
    its share of the same order. The share wraps around to be equal on all ranks: an evaluation on
    several ranks counts up to `world - 1` samples twice.

    Args:
        images: Shape (samples, ...), any dtype.
        labels: Shape (samples,).
        batch_size: Samples a batch and rank; the last batch may be smaller.
        shuffle: Whether each epoch has an order of its own.
        drop_last: Leaves a smaller last batch out.
        seed: The run's seed.
        transform: Applied to the images of each batch.

    Raises:
        ConfigError: For sizes that do not fit each other, or that leave no batch.

    Example:
        >>> loader = BatchLoader(torch.arange(5), torch.arange(5), batch_size=2, shuffle=True)
        >>> loader.set_epoch(1)
        >>> batches = [images.tolist() for images, _ in loader]
        >>> first = iter(loader); _ = next(first)
        >>> again = BatchLoader(torch.arange(5), torch.arange(5), batch_size=2, shuffle=True)
        >>> again.load_state_dict(loader.state_dict())
        >>> [images.tolist() for images, _ in again] == batches[1:]
        True
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        transform: Transform | None = None,
    ) -> None:
        if len(images) != len(labels) or len(images) == 0:
            raise ConfigError(
                f"images and labels must be equally many and at least one, "
                f"got {len(images)} and {len(labels)}"
            )
        super().__init__(batch_size, seed)
        self.images = images
        self.labels = labels
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        if len(self) == 0:
            raise ConfigError(
                f"batch_size={batch_size} with drop_last leaves no batch of {len(images)} samples: "
                f"write at most {len(images)}"
            )

    def __len__(self) -> int:
        count = share(len(self.images), _rank_and_world()[1])
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        rank, world = _rank_and_world()
        order = epoch_order(
            len(self.images),
            shuffle=self.shuffle,
            seed=self.seed,
            epoch=epoch,
            rank=rank,
            world=world,
        ).to(self.images.device)
        for batch in range(start, len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            images = self.images.index_select(0, index)
            if self.transform is not None:
                images = self.transform(images, generator(self.seed, "batch", epoch, batch, rank))
            yield images, self.labels.index_select(0, index)
