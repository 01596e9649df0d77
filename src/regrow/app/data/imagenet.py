# SPDX-License-Identifier: MIT
"""ImageNet as folders of image files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow.app.data.base import DataModule, Split, check_channels, check_val_size, split_stratified
from regrow.app.data.image_folder import FolderImages, class_folders, list_images
from regrow.app.data.loading.worker_loader import (
    Finish,
    ImageLoader,
    Source,
    WorkerConfig,
)
from regrow.app.data.transforms.batch_ops import make_normalizer
from regrow.app.data.transforms.decode import (
    CenterCrop,
    Pixels,
    RandomCrop,
    Seeded,
    make_torchvision_crop,
)
from regrow.utils.errors import ConfigError, DataError, check_choice, check_count
from regrow.utils.imports import import_optional

Transforms = str | Callable[[Any], Tensor]
"""For training images: "pillow", "torchvision", or a PIL image -> uint8 (3, size, size)."""

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
        transforms: For training images: "pillow"; "torchvision" (its transforms v2); or a callable
            from a PIL image to a uint8 tensor (3, size, size) that may draw from torch's global
            generator, which is seeded for each image.
        mean: Per channel, for pixels in [0, 1]; None: ImageNet's.
        std: Per channel, likewise.
        num_workers: Worker processes per rank; 0 reads in the training process.
        channels_last: Whether batches use the channels-last memory format.

    Raises:
        ConfigError: For invalid values, or if Pillow is not installed.
    """

    def __init__(
        self,
        num_classes: int,
        size: int,
        resize: int,
        batch_size: int,
        seed: int,
        transforms: Transforms,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        num_workers: int,
        channels_last: bool,
    ) -> None:
        super().__init__(batch_size, seed)
        import_optional("decoding images", "images", "PIL", "PIL.Image")
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
        self.channels_last = channels_last
        self._train_transform: Pixels
        if callable(transforms):
            self._train_transform = Seeded(transforms, self.size)
        elif check_choice("transforms", transforms, ["pillow", "torchvision"]) == "torchvision":
            self._train_transform = make_torchvision_crop(self.size)
        else:
            self._train_transform = RandomCrop(self.size)

    def pixels(self, split: Split) -> Pixels:
        """Return the transform from a decoded image to uint8 (3, size, size)."""
        return self._train_transform if split == "train" else CenterCrop(self.size, self.resize)

    def worker_config(self, split: Split) -> WorkerConfig:
        """Return how worker processes decode the images of a split."""
        pin = self.device.type == "cuda"
        return WorkerConfig(self.pixels(split), self.finish(), self.num_workers, pin)

    def finish(self) -> Finish:
        """Return the function that moves and normalizes a batch."""
        device = self.device
        normalize = make_normalizer(255, self.mean, self.std, device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def finish(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            images = images.to(device, non_blocking=True).contiguous(memory_format=layout)
            return normalize(images), labels.to(device, non_blocking=True)

        return finish

    def loader_of(self, source: Source, indices: Tensor, split: Split) -> ImageLoader:
        """Return a new loader of some images of a source."""
        return ImageLoader(
            source,
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
        size: As in `ImageFileDataModule`, like all other arguments.

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
        size: int = 224,
        resize: int = 256,
        batch_size: int = 128,
        seed: int = 0,
        transforms: Transforms = "pillow",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        num_workers: int = 4,
        channels_last: bool = True,
    ) -> None:
        self.root = None if root is None else Path(root).expanduser().absolute()
        if num_classes is None:
            num_classes = len(class_folders(self._part("train")))
        super().__init__(
            num_classes, size, resize, batch_size, seed, transforms, mean, std, num_workers,
            channels_last,
        )  # fmt: skip
        check_val_size("val_size", val_size, IMAGES)
        self.val_size = val_size
        self._splits: dict[str, tuple[FolderImages, Tensor]] = {}

    def prepare_data(self) -> None:
        """Check that the folders exist; Lightning calls this in one process per node."""
        for part in ("train", "val"):
            self._part(part)

    def load(self) -> None:
        """List and split the images once."""
        if self._splits:
            return
        train, test = list_images(self._part("train")), list_images(self._part("val"))
        _check_same_classes(train, test, self.num_classes)
        count = check_val_size("val_size", self.val_size, len(train.labels))
        first, second = split_stratified(train.labels, count, self.seed)
        every = torch.arange(len(test.labels))
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


def _check_same_classes(train: FolderImages, test: FolderImages, expected: int) -> None:
    different = sorted({*train.classes} ^ {*test.classes})
    if different:
        raise DataError(
            f"{train.folder} and {test.folder} must have the same class folders, only one of them "
            f"has {', '.join(different[:5])}{' ...' if len(different) > 5 else ''}: labels are "
            "positions in the sorted class names"
        )
    if len(train.classes) != expected:
        raise DataError(
            f"{train.folder} has {len(train.classes)} class folders instead of {expected}: write "
            f"data.num_classes={len(train.classes)}, and the same for the model"
        )
