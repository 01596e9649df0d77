# SPDX-License-Identifier: MIT
"""What the image data sets that fit into memory share: reading, splits, augmentation."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from regrow.app.data.augment import Augment, augmentation
from regrow.app.data.loader import BatchLoader
from regrow.app.data.module import DataModule, Split
from regrow.app.data.split import check_held_out, stratified
from regrow.app.data.transforms import normaliser

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
            `["crop_flip", {"cutout": 16}]`: see `regrow.app.data.augment`.

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
