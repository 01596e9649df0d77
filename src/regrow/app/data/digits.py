# SPDX-License-Identifier: MIT
"""The digits of scikit-learn."""

from __future__ import annotations

import functools

import torch

from regrow.app.data.base import ImageDataModule, split_stratified
from regrow.app.data.torchvision_files import Samples

TEST_SAMPLES = 360
TEST_SEED = 0  # the test set does not depend on the seed of the run


class Digits(ImageDataModule):
    """scikit-learn's 1,797 gray 8 x 8 digits in 10 classes (the UCI test set).

    A stratified fifth, 360 images, is the test set, the same for every seed.

    Args: as `ImageDataModule`.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI.

    Example:
        >>> data = Digits(batch_size=100, val_size=200)
        >>> data.setup()
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, len(data.train_dataloader())
        (torch.Size([100, 1, 8, 8]), 13)
    """

    num_classes = 10
    input_shape = (1, 8, 8)
    samples = 1797 - TEST_SAMPLES
    scale = 16.0
    mean = (0.30566,)
    std = (0.37626,)

    def __init__(
        self,
        batch_size: int = 64,
        val_size: float | int = 0.1,
        seed: int = 0,
        augment: str | None = None,
    ) -> None:
        super().__init__(batch_size, val_size, seed, augment)

    def read(self) -> tuple[Samples, Samples]:
        """Return the training and the test set.

        Raises:
            ImportError: If scikit-learn is not installed.
        """
        return _read()


@functools.cache
def _read() -> tuple[Samples, Samples]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which cannot be imported: "
            "write `pip install scikit-learn`, or use data=fashion_mnist"
        ) from error
    images, labels = load_digits(return_X_y=True)
    # pixels are integers from 0 to 16
    pixels = torch.from_numpy(images).to(torch.uint8).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()
    train, test = split_stratified(targets, TEST_SAMPLES, TEST_SEED)
    return (pixels[train], targets[train]), (pixels[test], targets[test])
