# SPDX-License-Identifier: MIT
"""Fashion-MNIST."""

from pathlib import Path

from regrow.app.data.base import ImageDataModule
from regrow.app.data.torchvision_files import TorchvisionFiles

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


class FashionMNIST(ImageDataModule):
    """60,000 training and 10,000 test gray images of clothes, 28 x 28 pixels, 10 classes.

    Read from Debian's package dataset-fashion-mnist if that is installed.

    Args: as `ImageDataModule`; `root` may also be a folder of the four .gz files.

    Source: Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747.

    Example:
        >>> data = FashionMNIST(batch_size=256, val_size=10000)
        >>> data.num_classes, data.input_shape
        (10, (1, 28, 28))
    """

    num_classes = 10
    input_shape = (1, 28, 28)
    samples = 60000
    scale = 255.0
    mean = (0.2860,)
    std = (0.3530,)
    files = TorchvisionFiles(
        "FashionMNIST", "31 MB", (str(DEBIAN), "~/.cache/regrow/fashion-mnist")
    )
