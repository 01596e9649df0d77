# SPDX-License-Identifier: MIT
"""torchvision's transforms for single images."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from torch import Tensor

from regrow.utils.errors import DataError
from regrow.utils.imports import import_optional

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[["Image"], Tensor]
"""An RGB image -> uint8 (3, size, size)."""

Transforms = str | Transform
"""For training images: a name in `NAMES`, or a transform."""

NAMES = ("crop_flip", "rand_augment")


def import_transforms(what: str) -> Any:
    """Import torchvision's transforms v2."""
    return import_optional(what, "vision", "torchvision", "torchvision.transforms.v2")


def make_training_transform(given: Transforms, size: int) -> Transform:
    """Return `given` if callable, else a random crop and flip, with RandAugment if that is named.

    Crops have 8 to 100 % of the area and an aspect ratio from 3/4 to 4/3.

    Source: Szegedy et al. 2015, arXiv 1409.4842; Cubuk et al. 2020, arXiv 1909.13719.
    """
    if callable(given):
        return given
    v2 = import_transforms("decoding images")
    steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    if given == "rand_augment":
        steps.append(v2.RandAugment())
    transform: Transform = v2.Compose([*steps, v2.PILToTensor()])
    return transform


def make_evaluation_transform(size: int, resize: int) -> Transform:
    """Return a transform that scales the shorter side to `resize` and crops the center."""
    v2 = import_transforms("decoding images")
    transform: Transform = v2.Compose([v2.Resize(resize), v2.CenterCrop(size), v2.PILToTensor()])
    return transform


def decode(file: str | IO[bytes], name: str = "") -> Image:
    """Decode an image file to RGB; messages give the name of an open file."""
    from PIL import Image

    try:
        return Image.open(file).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # raised by Pillow for damaged files
        raise DataError(
            f"{name or file} is not a complete image ({error}): fetch it again"
        ) from error
