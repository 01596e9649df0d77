# SPDX-License-Identifier: MIT
"""What the data sets share that are too large for memory: decoding, crops, workers, layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regrow.app.data.image_loader import Finish, ImageLoader, Source
from regrow.app.data.module import DataModule, Split, check_channels
from regrow.app.data.pixels import CentreCrop, Pixels, RandomCrop, Seeded, torchvision_crop
from regrow.app.data.transforms import normaliser
from regrow.errors import ConfigError, check_choice, check_count
from regrow.optional import need

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
        need("decoding images", "images", "PIL", "PIL.Image")
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
