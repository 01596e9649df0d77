# SPDX-License-Identifier: MIT
"""What the image data sets share: splits, loaders, and a position that survives a resume."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from regrow.app.data.loader import BatchLoader
from regrow.app.data.split import check_held_out, stratified
from regrow.app.data.transforms import crop_flip, normaliser
from regrow.errors import check_choice, check_count

Samples = tuple[Tensor, Tensor]
"""Images, uint8 (N, C, H, W), and labels, int64 (N,)."""


class ImageDataModule(LightningDataModule, ABC):
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
        augment: None, or "crop_flip" (pad by 4 pixels, or 2 for
            tiny images, crop at random, mirror).

    Raises:
        ConfigError: For a value that cannot be meant.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    samples: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        batch_size: int = 128,
        val_size: float | int = 0.1,
        seed: int = 0,
        augment: str | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = check_count("batch_size", batch_size)
        check_held_out("val_size", val_size, self.samples)
        self.val_size = val_size
        self.seed = check_count("seed", seed, least=0)
        self.augment = None if augment is None else check_choice("augment", augment, ["crop_flip"])
        self._splits: dict[str, Samples] = {}
        self._loader: BatchLoader | None = None
        self._position: dict[str, Any] = {}

    @abstractmethod
    def read(self) -> tuple[Samples, Samples]:
        """The training and the test set, on the CPU; quick when asked again."""

    def setup(self, stage: str = "fit") -> None:
        """Reads and splits the data."""
        if stage == "fit":  # Lightning loads a checkpoint's position after this
            self._loader, self._position = None, {}
        if not self._splits:
            (images, labels), test = self.read()
            held_out = check_held_out("val_size", self.val_size, len(labels))
            train, val = stratified(labels, held_out, self.seed)
            self._splits = {
                "train": (images[train], labels[train]),
                "val": (images[val], labels[val]),
                "test": test,
            }

    def train_dataloader(self) -> BatchLoader:
        """Shuffled, augmented; at the position of the checkpoint that is being resumed."""
        self._loader = self._make("train", shuffle=True)
        if self._position:
            self._loader.load_state_dict(self._position)
        return self._loader

    def val_dataloader(self) -> BatchLoader:
        """The held-out part of the training set, in order."""
        return self._make("val", shuffle=False)

    def test_dataloader(self) -> BatchLoader:
        """The test set, in order."""
        return self._make("test", shuffle=False)

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

    def _make(self, split: str, *, shuffle: bool) -> BatchLoader:
        if not self._splits:
            self.setup()
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        images, labels = self._splits[split]
        normalise = normaliser(self.scale, self.mean, self.std, device)
        augment = split == "train" and self.augment is not None
        padding = 4 if min(self.input_shape[1:]) > 16 else 2

        def transform(images: Tensor, generator: torch.Generator) -> Tensor:
            return normalise(crop_flip(images, generator, padding) if augment else images)

        return BatchLoader(
            images.to(device),
            labels.to(device),
            batch_size=self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            transform=transform,
        )
