# SPDX-License-Identifier: MIT
"""ImageNet as a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow.app.data.base import DataModule, Split, check_channels, check_held_out, stratified
from regrow.app.data.image_folder import FolderImages, class_folders, scan
from regrow.app.data.loading.worker_loader import Finish, ImageLoader, Source
from regrow.app.data.transforms.batch_ops import normaliser
from regrow.app.data.transforms.decode import (
    CentreCrop,
    Pixels,
    RandomCrop,
    Seeded,
    torchvision_crop,
)
from regrow.utils.errors import ConfigError, DataError, check_choice, check_count
from regrow.utils.imports import import_optional

Transforms = str | Callable[[Any], Tensor]
"""Of training images: "pillow", "torchvision", or a PIL image -> uint8 (3, size, size)."""


MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images, for pixels in [0, 1]


STD = (0.229, 0.224, 0.225)


IMAGES = 1_281_167  # of ImageNet's training set


SIZES = "ImageNet (ILSVRC 2012, from https://image-net.org: 138 GB train, 6.3 GB val)"


class Photographs(DataModule):
    """Images that worker processes read, decode and crop while the network trains.

    Training images: a random part scaled to `size`, mirrored or not. Others: the shorter side
    scaled to `resize`, the middle taken. Batches cross to the training device as bytes and are
    normalised there.

    Args:
        num_classes: How many labels there are.
        size: Side of the images that the network gets.
        resize: Shorter side of evaluated images before the middle is taken.
        batch_size: Samples a batch and rank.
        seed: Of the split, of each epoch's order and of the augmentation.
        transforms: Of training images. "pillow" needs nothing more; "torchvision" is its transforms
            v2; any other callable that makes a PIL image a uint8 tensor (3, size, size) and draws
            from torch's global generator, which is seeded for each image.
        mean: Of each channel, for pixels in [0, 1]; None: ImageNet's.
        std: Likewise.
        num_workers: Processes a rank that read ahead; 0 reads in the training process.
        channels_last: Whether batches lie in memory with the channels last.

    Raises:
        ConfigError: For values that cannot be meant, and when Pillow is not installed.
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
                f"resize must be at least size={size}, got {resize}: the middle of that size is "
                f"taken out of it, write resize={round(size * 8 / 7)}"
            )
        self.input_shape = (3, self.size, self.size)
        self.mean = check_channels("mean", mean, MEAN)
        self.std = check_channels("std", std, STD, positive=True)
        self.num_workers = check_count("num_workers", num_workers, least=0)
        self.channels_last = channels_last
        self._cropped: Pixels
        if callable(transforms):
            self._cropped = Seeded(transforms, self.size)
        elif check_choice("transforms", transforms, ["pillow", "torchvision"]) == "torchvision":
            self._cropped = torchvision_crop(self.size)
        else:
            self._cropped = RandomCrop(self.size)

    def pixels(self, split: Split) -> Pixels:
        """From a decoded image to uint8 (3, size, size)."""
        return self._cropped if split == "train" else CentreCrop(self.size, self.resize)

    def finish(self) -> Finish:
        """From a batch as it was read to one as the network gets it."""
        device = self.device
        normalise = normaliser(255, self.mean, self.std, device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def finish(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            images = images.to(device, non_blocking=True).contiguous(memory_format=layout)
            return normalise(images), labels.to(device, non_blocking=True)

        return finish

    def loader_of(self, source: Source, indices: Tensor, split: Split) -> ImageLoader:
        """A new loader of some images of a source."""
        return ImageLoader(
            source,
            indices,
            pixels=self.pixels(split),
            finish=self.finish(),
            batch_size=self.batch_size,
            shuffle=split == "train",
            seed=self.seed,
            workers=self.num_workers,
            pin=self.device.type == "cuda",
        )


class ImageNet(Photographs):
    """Photographs in `root/train/CLASS/*.JPEG` and `root/val/CLASS/*.JPEG`.

    What ImageNet calls its validation set is the TEST set here, since its own test labels are not
    public: it is measured once, at the end. Checkpoints are chosen on images that are held out from
    the training folder. Reported accuracies are therefore comparable with published ones, which
    are on those 50,000 images, and training sees 1 % fewer images.

    Args:
        root: The folder of `train` and `val`; there is no download.
        num_classes: Class folders in each; None counts them.
        val_size: What is held out from `train` for validation, stratified: a fraction in (0, 1), or
            a number of images.
        size: As in `Photographs`, like the rest.
        resize: Likewise.
        batch_size: Likewise.
        seed: Likewise.
        transforms: Likewise.
        mean: Likewise.
        std: Likewise.
        num_workers: Likewise.
        channels_last: Likewise.

    Raises:
        DataError: In `prepare_data` and `setup`, when the folders are missing or hold something
            else.

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
        check_held_out("val_size", val_size, IMAGES)
        self.val_size = val_size
        self._splits: dict[str, tuple[FolderImages, Tensor]] = {}

    def prepare_data(self) -> None:
        """Sees that the folders are there; Lightning calls this in one process a machine."""
        for part in ("train", "val"):
            self._part(part)

    def load(self) -> None:
        """Lists and splits the images, once."""
        if self._splits:
            return
        train, test = scan(self._part("train")), scan(self._part("val"))
        _check_same_classes(train, test, self.num_classes)
        held_out = check_held_out("val_size", self.val_size, len(train.labels))
        stay, held = stratified(train.labels, held_out, self.seed)
        every = torch.arange(len(test.labels))
        self._splits = {"train": (train, stay), "val": (train, held), "test": (test, every)}

    def loader(self, split: Split) -> ImageLoader:
        """A new loader of one split."""
        return self.loader_of(*self._splits[split], split)

    def _part(self, name: str) -> Path:
        """The folder `root/train` or `root/val`."""
        if self.root is None or not (self.root / name).is_dir():
            found = "no data.root was given" if self.root is None else f"{self.root} has no {name}/"
            raise DataError(
                f"{found}: put {SIZES} where there is room, as train/CLASS/*.JPEG and "
                "val/CLASS/*.JPEG, and write data.root=DIR for the folder of both"
            )
        return self.root / name


def _check_same_classes(train: FolderImages, test: FolderImages, expected: int) -> None:
    different = sorted({*train.classes} ^ {*test.classes})
    if different:
        raise DataError(
            f"{train.folder} and {test.folder} must have the same class folders, only one of them "
            f"has {', '.join(different[:5])}{' ...' if len(different) > 5 else ''}: labels are "
            "counted by these names"
        )
    if len(train.classes) != expected:
        raise DataError(
            f"{train.folder} has {len(train.classes)} class folders instead of {expected}: write "
            f"data.num_classes={len(train.classes)}, and the same for the model"
        )
