# SPDX-License-Identifier: MIT
"""Validation accuracy without a Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.app.data.base import DataModule
from regrow.app.training.classifier import Batch
from regrow.utils.batches import device_of
from regrow.utils.modes import eval_mode


class Validation:
    """Tells a network's accuracy on the validation set, never on the test set.

    What chooses where to prune has seen the samples that it chose by; a test set must not be among
    them.

    Args:
        data: Where the samples come from.
        samples: How many, drawn from the whole set by lot, the same ones each time, and kept in
            memory; None: all, read anew each time.

    Attributes:
        count: How many samples there are; known after the first call.
    """

    def __init__(self, data: DataModule, samples: int | None = None) -> None:
        data.prepare_data()
        data.setup("validate")
        self._data = data
        self._drawn = None if samples is None else _drawn(data.val_dataloader(), samples)
        self.count = 0

    def __call__(self, module: nn.Module) -> float:
        """The fraction of samples whose class gets the largest logit."""
        device = device_of(module)
        right, self.count = 0, 0
        for images, labels in self._batches():
            logits = module(images.to(device))
            right += int((logits.argmax(1) == labels.to(device)).count_nonzero())
            self.count += len(labels)
        return right / max(1, self.count)

    def _batches(self) -> Iterable[Batch]:
        if self._drawn is None:
            return self._data.val_dataloader()
        size, (images, labels) = self._data.batch_size, self._drawn
        starts = range(0, len(labels), size)
        return ((images[i : i + size], labels[i : i + size]) for i in starts)


def leave_gradients(module: nn.Module, data: DataModule, batches: int) -> int:
    """Leaves each parameter the gradient of the mean loss over some training batches.

    In eval mode, so that statistics of norms stay.

    Returns:
        How many samples these were.
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


def _drawn(batches: Iterable[Batch], count: int) -> tuple[Tensor, Tensor]:
    """Samples by lot, in one pass: those with the smallest of random numbers."""
    generator = torch.Generator().manual_seed(0)
    kept: list[Tensor] = []
    for images, labels in _on_cpu(batches):
        lots = torch.rand(len(labels), generator=generator)
        new = [lots, images, labels]
        kept = [torch.cat(pair) for pair in zip(kept, new, strict=True)] if kept else new
        if len(kept[0]) > count:
            lowest = kept[0].argsort()[:count].sort().values
            kept = [tensor[lowest] for tensor in kept]
    return kept[1], kept[2]


def _on_cpu(batches: Iterable[Batch]) -> Iterator[Batch]:
    for images, labels in batches:
        yield images.cpu(), labels.cpu()
