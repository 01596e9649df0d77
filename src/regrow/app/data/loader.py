# SPDX-License-Identifier: MIT
"""Batches of in-memory tensors that a resumed run gets exactly where it was cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed

from regrow.app.data.order import epoch_order, generator, share
from regrow.errors import ConfigError, StateError, check_count

Transform = Callable[[Tensor, torch.Generator], Tensor]
"""Images (N, C, H, W) and this batch's own generator -> images (N, C, H, W) for the model."""


class BatchLoader:
    """Iterates over `(images, labels)` batches without worker processes or global generators.

    Which samples a batch holds depends on (seed, epoch, batch), and so does its augmentation.
    Batches are picked on the device where the tensors lie. In distributed training each rank takes
    its share of the same order; Lightning leaves loaders that are no `DataLoader` alone, so no
    other sampler gets in between. The share wraps around to be equal on all ranks: an evaluation
    on several ranks counts up to `world - 1` samples twice.

    Lightning tells a loader's `sampler` the epoch; a plain loop calls `set_epoch` itself. After
    `load_state_dict` the next iteration goes on with the batch after the last one handed out,
    unless `set_epoch` names another epoch first. To be resumed in mid-epoch beside a learning-rate
    schedule it must come from a data module (`ImageDataModule.state_dict` says why).

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

    batch_sampler = None  # Lightning expects one beside `sampler`

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
        self.images = images
        self.labels = labels
        self.batch_size = check_count("batch_size", batch_size)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = check_count("seed", seed, least=0)
        self.transform = transform
        self._epoch = 0
        self._batch = 0  # batches of this epoch that were handed out
        self._resume = False
        self._loaded: int | None = None  # epoch of the loaded state, until a batch is handed out
        self._skipped = 0  # epochs that were told but never happened
        if len(self) == 0:
            raise ConfigError(
                f"batch_size={batch_size} with drop_last leaves no batch of {len(images)} samples: "
                f"write at most {len(images)}"
            )

    def __len__(self) -> int:
        """Batches in a whole epoch, also where a resumed one has fewer left."""
        count = share(len(self.images), _rank_and_world()[1])
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator: nothing below runs before the first batch is asked for, because Lightning
        # makes iterators before it tells the epoch or loads a state, and throws some away.
        start = self._batch if self._resume else 0
        self._resume = False
        rank, world = _rank_and_world()
        order = epoch_order(
            len(self.images),
            shuffle=self.shuffle,
            seed=self.seed,
            epoch=self._epoch,
            rank=rank,
            world=world,
        ).to(self.images.device)
        epoch = self._epoch
        for batch in range(start, len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            images = self.images.index_select(0, index)
            if self.transform is not None:
                images = self.transform(images, generator(self.seed, "batch", epoch, batch, rank))
            self._batch, self._loaded = batch + 1, None
            yield images, self.labels.index_select(0, index)

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch comes next; naming the present one changes nothing.

        Lightning 2.6, resumed at an epoch's end with `max_steps`, counts one epoch in which it
        asks for no batch. Such an epoch is left out here, or all later ones would have another
        order than in the uninterrupted run.
        """
        epoch -= self._skipped
        if self._loaded is not None and epoch > self._epoch > self._loaded:
            self._skipped += epoch - self._epoch
        elif epoch != self._epoch:
            self._epoch, self._batch, self._resume = epoch, 0, False

    @property
    def sampler(self) -> BatchLoader:
        """Itself: Lightning looks for `set_epoch` on a loader's sampler."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands: builtin numbers only."""
        return {
            "epoch": self._epoch,
            "batch": self._batch,
            "batches": len(self),
            "seed": self.seed,
            "skipped": self._skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` stood.

        Raises:
            StateError: When the epoch was cut in its middle and had other batches than this one.
        """
        unfinished = state["batch"] < state["batches"]
        if unfinished and (state["batches"], state["seed"]) != (len(self), self.seed):
            raise StateError(
                f"the checkpoint was cut at batch {state['batch']} of an epoch of "
                f"{state['batches']} batches with seed {state['seed']}; this run has "
                f"{len(self)} batches with seed {self.seed}: resume with the same data, batch "
                "size, ranks and seed, or from a checkpoint of an epoch's end"
            )
        self._epoch, self._batch, self._resume = state["epoch"], state["batch"], True
        self._loaded, self._skipped = state["epoch"], state["skipped"]


def _rank_and_world() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
