# SPDX-License-Identifier: MIT
"""Base classes of the data modules, and the stratified train/validation split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor

from regrow.app.data.augment import Augment, make_augmentation, make_normalizer
from regrow.app.data.torchvision_files import Samples, TorchvisionFiles
from regrow.data.data_module import TrainingPosition
from regrow.data.resumable import ResumableLoader, generator
from regrow.data.tensor_loader import BatchLoader
from regrow.utils.errors import ConfigError, check_bool, check_count
from regrow.utils.lightning_classes import pl

Split = Literal["train", "val", "test"]


class DataModule(pl.LightningDataModule, ABC):
    """A labelled image dataset with training, validation and test splits.

    The validation split is taken from the training set and selects the checkpoint; the test split
    is measured once at the end. Loaders yield normalized float32 batches on the training device.

    Attributes:
        num_classes: Number of labels.
        input_shape: (channels, height, width) of one image as the model receives it.
        channels_last: Whether batches use the channels-last memory format.

    Args:
        batch_size: Samples per batch and rank.
        seed: Seed of the split, the order of each epoch and the augmentation.

    Raises:
        ConfigError: For an invalid value.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    channels_last: bool = False

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size = check_count("batch_size", batch_size)
        self.seed = check_count("seed", seed, least=0)
        self._position = TrainingPosition()

    @abstractmethod
    def load(self) -> None:
        """Prepare the splits; repeated calls do nothing."""

    @abstractmethod
    def loader(self, split: Split) -> ResumableLoader:
        """Return a new loader, shuffled and augmented for "train" only."""

    def setup(self, stage: str = "fit") -> None:
        """Read and split the data."""
        if stage == "fit":  # Lightning restores the saved position afterwards
            self._position.forget()
        self.load()

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader, at the restored position when resuming."""
        self.load()
        return self._position.track(self.loader("train"))

    def val_dataloader(self) -> ResumableLoader:
        """Return the validation loader, in fixed order."""
        self.load()
        return self.loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """Return the test loader, in fixed order."""
        self.load()
        return self.loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training epoch."""
        return self._position.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position in the training epoch."""
        self._position.load_state_dict(state_dict)

    @property
    def device(self) -> torch.device:
        """The trainer's device, or the CPU without a trainer."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device


def check_channels(
    what: str, given: Sequence[float] | None, usual: Sequence[float], *, positive: bool = False
) -> tuple[float, ...]:
    """Return one number per channel as a tuple, those of the dataset if none are given."""
    if given is None:
        return tuple(usual)
    try:
        values = tuple(float(value) for value in given)
    except (TypeError, ValueError):
        values = ()
    if len(values) != len(usual) or (positive and min(values) <= 0):
        kind = "numbers above 0" if positive else "numbers"
        raise ConfigError(
            f"{what} must be {len(usual)} {kind}, one per channel, for pixels in [0, 1], "
            f"got {given!r}: write {what}={list(usual)}, or null for the dataset's own"
        )
    return values


def check_val_size(given: object, samples: int) -> int:
    """Convert a validation size, a fraction in (0, 1) or a count, to a count."""
    count = 0
    if isinstance(given, Integral) and not isinstance(given, bool):
        count = int(given)
    elif isinstance(given, Real) and not isinstance(given, bool) and 0 < float(given) < 1:
        count = round(float(given) * samples)
    if not 0 < count < samples:
        raise ConfigError(
            f"val_size must be a fraction in (0, 1) or a whole number from 1 to {samples - 1}, "
            f"got {given!r}: write 0.1 for 10 %"
        )
    return count


def split_stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split samples in two parts with the same class proportions.

    Each class contributes `count * class size / samples` samples to the second part, rounded by
    largest remainders so that the total is exact.

    Returns:
        Ascending indices of the first part, and of the second with `count` samples.
    """
    samples = len(labels)
    classes, sizes = torch.unique(labels, return_counts=True)
    shares = [divmod(count * size, samples) for size in sizes.tolist()]
    counts = [whole for whole, _ in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: -shares[i][1])
    for i in by_remainder[: count - sum(counts)]:
        counts[i] += 1
    mask = torch.zeros(samples, dtype=torch.bool)
    for label, size in zip(classes.tolist(), counts, strict=True):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "split", label))
        mask[members[order[:size]]] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()


class ImageDataModule(DataModule):
    """An image dataset held in memory, on the training device.

    Subclasses set the class attributes. The images are those of a data set of torchvision, `files`,
    or what a subclass returns from `read`. Batches are augmented and normalized on the training
    device.

    Attributes:
        samples: Size of the training set, validation included.
        scale: Largest pixel value.
        mean: Per channel over the training set, for pixels in [0, 1].
        std: Per channel, likewise.
        files: A data set of torchvision.

    Args:
        batch_size: Samples per batch and rank.
        val_size: Stratified part of the training set used for validation: a fraction in (0, 1) or
            a number of samples.
        seed: Seed of the split, the order of each epoch and the augmentation.
        augment: None or the steps applied to training images, such as "crop_flip" or
            `["crop_flip", {"cutout": 16}]`: see `regrow.app.data.augment`.
        mean: Replaces the class's `mean`.
        std: Replaces the class's `std`.
        channels_last: Whether batches use the channels-last memory format.
        root: Folder of `files`; None: the default of the data set.
        download: Whether `prepare_data` may download missing files; they are verified.

    Raises:
        ConfigError: For an invalid value.
    """

    samples: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: TorchvisionFiles | None = None

    def __init__(
        self,
        batch_size: int = 128,
        val_size: float | int = 0.1,
        seed: int = 0,
        augment: Augment = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels_last: bool = False,
        root: str | None = None,
        download: bool = True,
    ) -> None:
        super().__init__(batch_size, seed)
        self.root, self.download = root, check_bool("download", download)
        if mean is not None:
            self.mean = check_channels("mean", mean, self.mean)
        if std is not None:
            self.std = check_channels("std", std, self.std, positive=True)
        self.channels_last = check_bool("channels_last", channels_last)
        check_val_size(val_size, self.samples)
        self.val_size = val_size
        self.augment = augment
        make_augmentation(augment, self.input_shape, self.mean, self.scale)  # checks
        self._splits: dict[str, Samples] = {}

    def prepare_data(self) -> None:
        """Download missing files; Lightning calls this in one process per node."""
        if self.files is not None:
            self.files.prepare(self.root, self.download)

    def read(self) -> tuple[Samples, Samples]:
        """Return the training and the test set on the CPU, cached."""
        if self.files is None:
            raise NotImplementedError(f"{type(self).__name__} needs `files` or its own `read`")
        return self.files.read(self.root)

    def load(self) -> None:
        """Read and split the data once."""
        if not self._splits:
            (images, labels), test = self.read()
            count = check_val_size(self.val_size, len(labels))
            train, val = split_stratified(labels, count, self.seed)
            self._splits = {
                "train": (images[train], labels[train]),
                "val": (images[val], labels[val]),
                "test": test,
            }

    def loader(self, split: Split) -> BatchLoader:
        """Return a new loader of one split, with its tensors on the training device."""
        device = self.device
        images, labels = self._splits[split]
        steps = self.augment if split == "train" else None
        augment = make_augmentation(steps, self.input_shape, self.mean, self.scale)
        normalize = make_normalizer(self.scale, self.mean, self.std, device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def transform(images: Tensor, generator: torch.Generator) -> Tensor:
            return normalize(augment(images, generator)).contiguous(memory_format=layout)

        return BatchLoader(
            images.to(device),
            labels.to(device),
            batch_size=self.batch_size,
            shuffle=split == "train",
            seed=self.seed,
            transform=transform,
        )
