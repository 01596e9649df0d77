# SPDX-License-Identifier: MIT
"""DataModule, in-memory datasets, stratified split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from regrow.app.data.loading.epoch_order import generator
from regrow.app.data.loading.resumable import ResumableLoader
from regrow.app.data.loading.tensor_loader import BatchLoader
from regrow.app.data.transforms.augment import Augment, augmentation
from regrow.app.data.transforms.batch_ops import normaliser
from regrow.utils.errors import ConfigError, check_count

Split = Literal["train", "val", "test"]


class DataModule(LightningDataModule, ABC):
    """A labelled image set: training, validation held out from it, and test.

    Checkpoints are chosen on validation; the test set is for one measurement at the end. Loaders
    give normalised float32 batches on the training device.

    Attributes:
        num_classes: How many labels there are.
        input_shape: (channels, height, width) of one image as the model gets it.
        channels_last: Whether batches lie in memory with the channels last; the model should too.

    Args:
        batch_size: Samples a batch and rank.
        seed: Of the split, of each epoch's order and of the augmentation.

    Raises:
        ConfigError: For a value that cannot be meant.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    channels_last: bool = False

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size = check_count("batch_size", batch_size)
        self.seed = check_count("seed", seed, least=0)
        self._loader: ResumableLoader | None = None
        self._position: dict[str, Any] = {}

    @abstractmethod
    def load(self) -> None:
        """Makes the splits ready; quick when asked again."""

    @abstractmethod
    def loader(self, split: Split) -> ResumableLoader:
        """A new loader: shuffled and augmented for "train", else in order and whole."""

    def setup(self, stage: str = "fit") -> None:
        """Reads and splits the data."""
        if stage == "fit":  # Lightning loads a checkpoint's position after this
            self._loader, self._position = None, {}
        self.load()

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, augmented; at the position of the checkpoint that is being resumed."""
        self.load()
        self._loader = self.loader("train")
        if self._position:
            self._loader.load_state_dict(self._position)
        return self._loader

    def val_dataloader(self) -> ResumableLoader:
        """The held-out part of the training set, in order."""
        self.load()
        return self.loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """The test set, in order."""
        self.load()
        return self.loader("test")

    def state_dict(self) -> dict[str, Any]:
        """The position in the training epoch.

        Lightning 2.6 drops a loader's own state when anything asks for
        `trainer.estimated_stepping_batches` before the state is restored, as learning-rate
        schedules do (Lightning issue 20550); a data module's state is always restored.
        """
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the position for the training loader, whether or not it was made already."""
        self._position = state_dict
        if self._loader is not None:
            self._loader.load_state_dict(state_dict)

    @property
    def device(self) -> torch.device:
        """Where the batches go: the trainer's device, or the CPU without one."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device


def check_channels(
    what: str, given: Sequence[float] | None, usual: Sequence[float], *, positive: bool = False
) -> tuple[float, ...]:
    """One number a channel; the usual ones for None.

    Args:
        what: The setting's name, for the message.
        given: From the user.
        usual: The data set's own.
        positive: Whether each must be above 0.

    Raises:
        ConfigError: For other things than numbers, too many or too few.

    Example:
        >>> check_channels("mean", None, (0.5, 0.4, 0.3))
        (0.5, 0.4, 0.3)
    """
    if given is None:
        return tuple(usual)
    try:
        values = tuple(float(value) for value in given)
    except (TypeError, ValueError):
        values = ()
    if len(values) != len(usual) or (positive and min(values) <= 0):
        kind = "numbers above 0" if positive else "numbers"
        raise ConfigError(
            f"{what} must be {len(usual)} {kind}, one a channel, for pixels in [0, 1], "
            f"got {given!r}: write {what}={list(usual)}, or null for the data set's own"
        )
    return values


def check_held_out(what: str, given: object, samples: int) -> int:
    """How many of `samples` to hold out.

    Args:
        what: The setting's name, for the message.
        given: A fraction in (0, 1), or a whole number of samples.
        samples: How many there are.

    Raises:
        ConfigError: When none or all would be held out.

    Example:
        >>> check_held_out("val_size", 0.1, 1437)
        144
        >>> check_held_out("val_size", 10.0, 1437)
        Traceback (most recent call last):
            ...
        regrow.ConfigError: val_size must be a fraction in (0, 1) or a whole number \
from 1 to 1436, got 10.0: write 0.1 for 10 %
    """
    count = 0
    if isinstance(given, Integral) and not isinstance(given, bool):
        count = int(given)
    elif isinstance(given, Real) and not isinstance(given, bool) and 0 < float(given) < 1:
        count = round(float(given) * samples)
    if not 0 < count < samples:
        raise ConfigError(
            f"{what} must be a fraction in (0, 1) or a whole number from 1 to {samples - 1}, "
            f"got {given!r}: write 0.1 for 10 %"
        )
    return count


def stratified(labels: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Splits samples in two, so that every class gives its share to both.

    Classes give `held_out * class size / samples`, rounded by largest remainders, so that the sum
    is exact.

    Args:
        labels: Whole numbers, shape (samples,).
        held_out: How many to hold out.
        seed: Which of each class.

    Returns:
        Indices of the samples that stay and of those held out, each in rising order.

    Example:
        >>> stay, held = stratified(torch.tensor([0, 0, 1, 1, 1, 1]), 3, seed=0)
        >>> len(stay), sorted([0, 0, 1, 1, 1, 1][i] for i in held)
        (3, [0, 1, 1])
    """
    samples = len(labels)
    classes, sizes = torch.unique(labels, return_counts=True)
    shares = [divmod(held_out * size, samples) for size in sizes.tolist()]
    counts = [whole for whole, _ in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: -shares[i][1])
    for i in by_remainder[: held_out - sum(counts)]:
        counts[i] += 1
    mask = torch.zeros(samples, dtype=torch.bool)
    for label, count in zip(classes.tolist(), counts, strict=True):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "split", label))
        mask[members[order[:count]]] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()


Samples = tuple[Tensor, Tensor]
"""Images, uint8 (N, C, H, W), and labels, int64 (N,)."""


class ImageDataModule(DataModule):
    """A labelled image set in memory: training, validation held out from it, and test.

    A data set says what it is in class attributes and gives its tensors in `read`. Tensors lie on
    the training device; batches are augmented and normalised there.

    Attributes:
        num_classes: How many labels there are.
        input_shape: (channels, height, width) of one image.
        samples: Size of the training set, validation included.
        scale: The value of a full pixel.
        mean: Of each channel over the training set, with pixels in [0, 1].
        std: Likewise.

    Args:
        batch_size: Samples a batch and rank.
        val_size: What is held out from the training set for validation, stratified: a fraction in
            (0, 1), or a number of samples.
        seed: Of the split, of each epoch's order and of the augmentation.
        augment: None, or the steps that training images go through, such as "crop_flip", or
            `["crop_flip", {"cutout": 16}]`: see `regrow.app.data.transforms.augment`.

    Raises:
        ConfigError: For a value that cannot be meant.
    """

    samples: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        batch_size: int = 128,
        val_size: float | int = 0.1,
        seed: int = 0,
        augment: Augment = None,
    ) -> None:
        super().__init__(batch_size, seed)
        check_held_out("val_size", val_size, self.samples)
        self.val_size = val_size
        self.augment = augment
        augmentation(augment, self.input_shape, self.mean, self.scale)  # refuses mistakes now
        self._splits: dict[str, Samples] = {}

    @abstractmethod
    def read(self) -> tuple[Samples, Samples]:
        """The training and the test set, on the CPU; quick when asked again."""

    def load(self) -> None:
        """Reads and splits the data, once."""
        if not self._splits:
            (images, labels), test = self.read()
            held_out = check_held_out("val_size", self.val_size, len(labels))
            train, val = stratified(labels, held_out, self.seed)
            self._splits = {
                "train": (images[train], labels[train]),
                "val": (images[val], labels[val]),
                "test": test,
            }

    def loader(self, split: Split) -> BatchLoader:
        """A new loader of one split, with its tensors on the training device."""
        device = self.device
        images, labels = self._splits[split]
        given = self.augment if split == "train" else None
        augment = augmentation(given, self.input_shape, self.mean, self.scale)
        normalise = normaliser(self.scale, self.mean, self.std, device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def transform(images: Tensor, generator: torch.Generator) -> Tensor:
            return normalise(augment(images, generator)).contiguous(memory_format=layout)

        return BatchLoader(
            images.to(device),
            labels.to(device),
            batch_size=self.batch_size,
            shuffle=split == "train",
            seed=self.seed,
            transform=transform,
        )
