# SPDX-License-Identifier: MIT
"""Validation accuracy without a Trainer."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.app.training.classifier import Batch
from regrow.utils.batches import device_of
from regrow.utils.lightning_classes import pl
from regrow.utils.modes import eval_mode

_SUBSET_BATCH = 256


class Validation:
    """Compute the accuracy of a network on the validation set.

    The test set is never used, since the result selects where to prune.

    `samples` is the size of a random subset, kept in memory and equal in each call (None: all);
    `count` is the number of samples of the last call.
    """

    def __init__(self, data: pl.LightningDataModule, samples: int | None = None) -> None:
        data.prepare_data()
        data.setup("validate")
        self._data = data
        self._subset = None if samples is None else _draw_samples(data.val_dataloader(), samples)
        self.count = 0

    def __call__(self, module: nn.Module) -> float:
        """Return the accuracy as a fraction."""
        device = device_of(module)
        right, self.count = 0, 0
        for images, labels in self._batches():
            logits = module(images.to(device))
            right += int((logits.argmax(1) == labels.to(device)).count_nonzero())
            self.count += len(labels)
        return right / max(1, self.count)

    def _batches(self) -> Iterable[Batch]:
        if self._subset is None:
            return cast("Iterable[Batch]", self._data.val_dataloader())
        size, (images, labels) = _SUBSET_BATCH, self._subset
        starts = range(0, len(labels), size)
        return ((images[i : i + size], labels[i : i + size]) for i in starts)


def leave_gradients(module: nn.Module, data: pl.LightningDataModule, batches: int) -> int:
    """Set the gradients to those of the mean loss over some training batches, in eval mode.

    Returns:
        The number of samples.
    """
    device, count = device_of(module), 0
    module.zero_grad()
    with eval_mode(module):
        for images, labels in islice(iter(data.train_dataloader()), batches):
            logits = module(images.to(device))
            loss = F.cross_entropy(logits, labels.to(device), reduction="sum")
            torch.autograd.backward([loss])
            count += len(labels)
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad /= count
    return count


def _draw_samples(batches: Iterable[Batch], count: int) -> tuple[Tensor, Tensor]:
    """Draw a random subset in one pass: the samples with the smallest random numbers."""
    generator = torch.Generator().manual_seed(0)
    kept: list[Tensor] = []
    for images, labels in batches:
        keys = torch.rand(len(labels), generator=generator)
        new = [keys, images.cpu(), labels.cpu()]
        kept = [torch.cat(pair) for pair in zip(kept, new, strict=True)] if kept else new
        if len(kept[0]) > count:
            lowest = kept[0].argsort()[:count].sort().values
            kept = [tensor[lowest] for tensor in kept]
    return kept[1], kept[2]
