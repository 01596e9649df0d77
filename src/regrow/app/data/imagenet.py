# SPDX-License-Identifier: MIT
"""ImageNet as folders of image files."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow.app.data.augment import make_normalizer
from regrow.app.data.base import DataModule, Split, check_channels, check_val_size, split_stratified
from regrow.app.data.image_transforms import (
    NAMES,
    Transforms,
    decode,
    make_evaluation_transform,
    make_training_transform,
)
from regrow.app.data.worker_loader import Finish, ImageLoader, WorkerConfig
from regrow.utils.errors import ConfigError, DataError, check_bool, check_choice, check_count
from regrow.utils.imports import import_optional

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images, for pixels in [0, 1]
STD = (0.229, 0.224, 0.225)
IMAGES = 1_281_167  # of ImageNet's training set
SIZES = "ImageNet (ILSVRC 2012, from https://image-net.org: 138 GB train, 6.3 GB val)"


class ImageFileDataModule(DataModule):
    """Images that worker processes read, decode and crop.

    Training images are random crops scaled to `size` and flipped at random. Other images are
    scaled to a shorter side of `resize` and center-cropped. Batches are transferred to the training
    device as uint8 and normalized there.

    Args:
        num_classes: Number of labels.
        size: Side of the images that the network receives.
        resize: Shorter side of evaluated images before the center crop.
        batch_size: Samples per batch and rank.
        seed: Seed of the split, the order of each epoch and the augmentation.
        transforms: For training images: "crop_flip" (random crop and flip); "rand_augment" (both,
            then RandAugment); or a callable from a PIL image to a uint8 tensor (3, size, size),
            such as one of torchvision's transforms v2. It may draw from the global generators of
            torch, NumPy and `random`, which are seeded for each image.
        mean: Per channel, for pixels in [0, 1]; None: ImageNet's.
        std: Per channel, likewise.
        num_workers: Worker processes per rank; 0 reads in the training process.
        channels_last: Whether batches use the channels-last memory format.

    Raises:
        ConfigError: For invalid values; in `prepare_data` and `setup`, if torchvision is missing.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        size: int = 224,
        resize: int = 256,
        batch_size: int = 128,
        seed: int = 0,
        transforms: Transforms = "crop_flip",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        num_workers: int = 4,
        channels_last: bool = True,
    ) -> None:
        super().__init__(batch_size, seed)
        self.num_classes = check_count("num_classes", num_classes, least=2)
        self.size = check_count("size", size)
        self.resize = check_count("resize", resize)
        if self.resize < self.size:
            raise ConfigError(
                f"resize must be at least size={size}, got {resize}: images are "
                f"center-cropped after it, write resize={round(size * 8 / 7)}"
            )
        self.input_shape = (3, self.size, self.size)
        self.mean = check_channels("mean", mean, MEAN)
        self.std = check_channels("std", std, STD, positive=True)
        self.num_workers = check_count("num_workers", num_workers, least=0)
        self.channels_last = check_bool("channels_last", channels_last)
        if not callable(transforms):
            check_choice("transforms", transforms, NAMES)
        self.transforms = transforms

    def worker_config(self, split: Split) -> WorkerConfig:
        """Return how worker processes decode the images of a split."""
        if split == "train":
            transform = make_training_transform(self.transforms, self.size)
        else:
            transform = make_evaluation_transform(self.size, self.resize)
        pin = self.device.type == "cuda"
        return WorkerConfig(transform, self.finish(), self.num_workers, pin)

    def finish(self) -> Finish:
        """Return the function that moves and normalizes a batch."""
        device = self.device
        normalize = make_normalizer(255, self.mean, self.std, device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def finish(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            if images.dtype != torch.uint8 or images.shape[1:] != self.input_shape:
                raise DataError(
                    f"data.transforms must return uint8 {self.input_shape}, as PILToTensor does, "
                    f"got {images.dtype} {tuple(images.shape[1:])}: images are normalized later, "
                    "on the training device"
                )
            images = images.to(device, non_blocking=True).contiguous(memory_format=layout)
            return normalize(images), labels.to(device, non_blocking=True)

        return finish

    def loader_of(self, images: Any, indices: Tensor, split: Split) -> ImageLoader:
        """Return a new loader of some of the images of a map-style dataset."""
        return ImageLoader(
            images,
            indices,
            self.worker_config(split),
            batch_size=self.batch_size,
            shuffle=split == "train",
            seed=self.seed,
        )


class ImageNet(ImageFileDataModule):
    """ImageNet as `root/train/CLASS/*.JPEG` and `root/val/CLASS/*.JPEG`.

    ImageNet's validation set is the TEST set here, since its test labels are not public; it is
    measured once, at the end. Checkpoints are selected on images taken from the training folder.
    Reported accuracies are therefore comparable with published ones, and training sees 1 % fewer
    images.

    Args:
        root: Folder of `train` and `val`; there is no download.
        num_classes: Number of class folders; None counts them.
        val_size: Stratified part of `train` used for validation: a fraction in (0, 1) or a number
            of images.
        **images: Arguments of `ImageFileDataModule`.

    Raises:
        DataError: In `prepare_data` and `setup`, if the folders are missing or invalid.

    Source: Russakovsky et al. 2015, arXiv 1409.0575.

    Example:
        >>> data = ImageNet(root="/data/imagenet", batch_size=256)
        >>> data.num_classes, data.input_shape
        (1000, (3, 224, 224))
    """

    def __init__(
        self,
        root: str | None = None,
        num_classes: int | None = 1000,
        val_size: float | int = 0.01,
        **images: Any,
    ) -> None:
        self.root = None if root is None else Path(root).expanduser().absolute()
        if num_classes is None:
            num_classes = sum(entry.is_dir() for entry in os.scandir(self._part("train")))
        super().__init__(num_classes, **images)
        check_val_size(val_size, IMAGES)
        self.val_size = val_size
        self._splits: dict[str, tuple[Any, Tensor]] = {}

    def prepare_data(self) -> None:
        """Check that the folders exist; Lightning calls this in one process per node."""
        import_datasets()
        for part in ("train", "val"):
            self._part(part)

    def load(self) -> None:
        """List and split the images once."""
        if self._splits:
            return
        train, test = list_images(self._part("train")), list_images(self._part("val"))
        _check_same_classes(train, test, self.num_classes)
        count = check_val_size(self.val_size, len(train))
        first, second = split_stratified(torch.tensor(train.targets), count, self.seed)
        every = torch.arange(len(test))
        self._splits = {"train": (train, first), "val": (train, second), "test": (test, every)}

    def loader(self, split: Split) -> ImageLoader:
        """Return a new loader of one split."""
        return self.loader_of(*self._splits[split], split)

    def _part(self, name: str) -> Path:
        if self.root is None or not (self.root / name).is_dir():
            problem = (
                "no data.root was given" if self.root is None else f"{self.root} has no {name}/"
            )
            raise DataError(
                f"{problem}: put {SIZES} on a disk with enough space, as train/CLASS/*.JPEG and "
                "val/CLASS/*.JPEG, and write data.root=DIR for the folder of both"
            )
        return self.root / name


def import_datasets() -> Any:
    """Import torchvision's datasets."""
    return import_optional("image folders", "vision", "torchvision", "torchvision.datasets")


@functools.cache
def list_images(folder: Path) -> Any:
    """List `folder/CLASS/NAME.JPEG` as torchvision's `ImageFolder`, once per process."""
    try:
        return import_datasets().ImageFolder(folder, loader=decode)
    except FileNotFoundError as error:
        raise DataError(
            f"{error}: write {folder}/CLASS/NAME.JPEG, with the same classes in train and val"
        ) from error


def _check_same_classes(train: Any, test: Any, expected: int) -> None:
    different = sorted({*train.classes} ^ {*test.classes})
    if different:
        raise DataError(
            f"{train.root} and {test.root} must have the same class folders, only one of them "
            f"has {', '.join(different[:5])}{' ...' if len(different) > 5 else ''}: labels are "
            "positions in the sorted class names"
        )
    if len(train.classes) != expected:
        raise DataError(
            f"{train.root} has {len(train.classes)} class folders instead of {expected}: write "
            f"data.num_classes={len(train.classes)}, and the same for the model"
        )
