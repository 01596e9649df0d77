# SPDX-License-Identifier: MIT
"""Scikit-learn digits."""

from __future__ import annotations

import functools

import torch

from regrow.app.data.base import ImageDataModule, Samples, stratified

TEST_SAMPLES = 360


TEST_SEED = 0  # fixed: the test set is the same one whatever the run's seed is


class Digits(ImageDataModule):
    """scikit-learn's copy of the test set of the UCI optical digits: 1,797 grey images, 10 classes.

    360 of them, a fifth of each class, are the test set, the same for every seed.

    Args: as `ImageDataModule`; batches of 64.

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
        """Training and test set.

        Raises:
            ImportError: When scikit-learn, which brings the images, is missing.
        """
        return _read()


@functools.cache
def _read() -> tuple[Samples, Samples]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which cannot be imported: "
            "write `pip install scikit-learn`, or take data=fashion_mnist"
        ) from error
    images, labels = load_digits(return_X_y=True)
    # pixels are whole numbers from 0 to 16
    pixels = torch.from_numpy(images).to(torch.uint8).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels).long()
    train, test = stratified(targets, TEST_SAMPLES, TEST_SEED)
    return (pixels[train], targets[train]), (pixels[test], targets[test])
