# SPDX-License-Identifier: MIT
"""CIFAR-10 and CIFAR-100."""

from regrow.app.data.base import ImageDataModule
from regrow.app.data.torchvision_files import TorchvisionFiles

FOLDERS = ("~/.cache/regrow/cifar",)


class CIFAR10(ImageDataModule):
    """50,000 training and 10,000 test photos of 32 x 32 pixels in 10 classes.

    Args: as `ImageDataModule`.

    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".

    Example:
        >>> data = CIFAR10(augment=["crop_flip", {"cutout": 16}], val_size=5000)
        >>> data.num_classes, data.input_shape
        (10, (3, 32, 32))
    """

    num_classes = 10
    input_shape = (3, 32, 32)
    samples = 50000
    scale = 255.0
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    files = TorchvisionFiles("CIFAR10", "170 MB", FOLDERS)


class CIFAR100(ImageDataModule):
    """50,000 training and 10,000 test photos in 100 classes (the fine labels).

    Args: as `ImageDataModule`.

    Example:
        >>> data = CIFAR100(augment={"crop_flip": None, "rand_augment": {"magnitude": 5}})
        >>> data.num_classes
        100
    """

    num_classes = 100
    input_shape = (3, 32, 32)
    samples = 50000
    scale = 255.0
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    files = TorchvisionFiles("CIFAR100", "169 MB", FOLDERS)
