# SPDX-License-Identifier: MIT
"""Loader of in-memory tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Generator, Tensor

from regrow.data.resumable import (
    Batch,
    ResumableLoader,
    epoch_order,
    generator,
    rank_and_world,
    samples_per_rank,
)
from regrow.utils.errors import ConfigError, check_bool

Transform = Callable[[Tensor, Generator], Tensor]
"""Images (N, C, H, W) and the generator of this batch -> images (N, C, H, W)."""


class BatchLoader(ResumableLoader):
    """Iterate over `(images, labels)` batches without worker processes or global generators.

    The samples of a batch and their augmentation depend on (seed, epoch, batch). Batches are
    gathered on the device of the tensors. Ranks visit equal parts of the same order, which wraps
    around: evaluation on several ranks counts up to `world - 1` samples twice.

    Args:
        images: Shape (samples, ...), any dtype.
        labels: Shape (samples,).
        batch_size: Samples per batch and rank; the last batch may be smaller.
        shuffle: Whether to shuffle each epoch.
        drop_last: Whether to drop a smaller last batch.
        seed: Seed of the run.
        transform: Applied to the images of each batch.

    Raises:
        ConfigError: For sizes that differ, or that leave no batch.

    Example:
        >>> import torch
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
        self.shuffle = check_bool("shuffle", shuffle)
        self.drop_last = check_bool("drop_last", drop_last)
        self.transform = transform
        if len(self) == 0:
            raise ConfigError(
                f"batch_size={batch_size} with drop_last leaves no batch of {len(images)} samples: "
                f"write at most {len(images)}"
            )

    def __len__(self) -> int:
        count = samples_per_rank(len(self.images), rank_and_world()[1])
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        rank, world = rank_and_world()
        samples, device = len(self.images), self.images.device
        order = epoch_order(
            samples, shuffle=self.shuffle, seed=self.seed, epoch=epoch, rank=rank, world=world
        ).to(device)
        for batch in range(start, len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            images = self.images.index_select(0, index)
            if self.transform is not None:
                images = self.transform(images, generator(self.seed, "batch", epoch, batch, rank))
            yield images, self.labels.index_select(0, index)
