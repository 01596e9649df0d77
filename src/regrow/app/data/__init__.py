# SPDX-License-Identifier: MIT
"""Data sets whose batches depend on (seed, epoch, batch) alone: in memory, folders, shards.

Classes are imported when first used, since each needs other packages.
"""

import importlib
from typing import Any

_MODULES = {
    "CIFAR10": "cifar",
    "CIFAR100": "cifar",
    "DataModule": "base",
    "Digits": "digits",
    "FashionMNIST": "fashion_mnist",
    "ImageNet": "imagenet",
    "ImageNetShards": "webdataset",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
