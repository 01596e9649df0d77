# SPDX-License-Identifier: MIT
"""Decode image files and crop them to tensors."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from regrow.utils.errors import DataError
from regrow.utils.imports import import_optional

if TYPE_CHECKING:
    from PIL.Image import Image


Pixels = Callable[["Image", torch.Generator], Tensor]
"""An RGB image and its generator -> uint8 (3, size, size)."""

Box = tuple[int, int, int, int]
"""left, top, right, bottom."""

SMALLEST, TRIES = 0.08, 10  # fraction of the area; attempts before the center is used
FLATTEST, TALLEST = 4 / 3, 3 / 4  # width / height


def decode(data: bytes, name: str) -> Image:
    """Decode an image file to RGB.

    Raises:
        DataError: If the image is damaged.
    """
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # raised by Pillow for damaged files
        raise DataError(f"{name} is not a complete image ({error}): fetch it again") from error


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A random crop scaled to `size` and flipped with probability 1/2.

    The crop has 8 to 100 % of the area and an aspect ratio from 3/4 to 4/3.

    Source: Szegedy et al. 2015, arXiv 1409.4842; as torchvision's RandomResizedCrop.
    """

    size: int

    def __call__(self, image: Image, generator: torch.Generator) -> Tensor:
        box = random_box(image.width, image.height, generator)
        out = scale(image.crop(box), self.size, self.size)
        mirrored = bool(torch.rand((), generator=generator) < 0.5)
        return pixels(out).flip(2) if mirrored else pixels(out)


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """The center `size` x `size` of an image whose shorter side is scaled to `resize`."""

    size: int
    resize: int

    def __call__(self, image: Image, generator: torch.Generator) -> Tensor:
        short = min(image.width, image.height)
        width, height = (int(self.resize * side / short) for side in (image.width, image.height))
        left, top = (round((side - self.size) / 2) for side in (width, height))
        out = scale(image, width, height)
        return pixels(out.crop((left, top, left + self.size, top + self.size)))


@dataclasses.dataclass(frozen=True)
class Seeded:
    """A transform that draws from torch's global generator, such as torchvision's.

    The global generator is seeded for each image and restored afterwards.

    Attributes:
        transform: A PIL image -> uint8 (3, size, size).
        size: Required side of the result.
    """

    transform: Callable[[Any], Any]
    size: int

    def __call__(self, image: Image, generator: torch.Generator) -> Tensor:
        before = torch.get_rng_state()
        # not torch.manual_seed, which would seed the accelerators too
        torch.default_generator.manual_seed(generator.initial_seed())
        try:
            out = self.transform(image)
        finally:
            torch.set_rng_state(before)
        wanted = (3, self.size, self.size)
        if not isinstance(out, Tensor) or out.dtype != torch.uint8 or out.shape != wanted:
            got = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, Tensor) else type(out)
            raise DataError(
                f"data.transforms must return uint8 {wanted}, as PILToTensor does, got "
                f"{got}: images are normalized later, on the training device"
            )
        return out


def make_torchvision_crop(size: int) -> Seeded:
    """Return RandomResizedCrop and RandomHorizontalFlip of torchvision's transforms v2.

    Raises:
        ConfigError: If torchvision is not installed.
    """
    v2 = import_optional(
        "data.transforms=torchvision", "vision", "torchvision", "torchvision.transforms.v2"
    )
    steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    return Seeded(v2.Compose(steps), size)


def random_box(width: int, height: int, generator: torch.Generator) -> Box:
    """Draw a box of random area and aspect ratio; if none fits, use the center of the image.

    Example:
        >>> random_box(500, 5, torch.Generator().manual_seed(0))  # nothing of that shape fits
        (246, 0, 253, 5)
    """
    for _ in range(TRIES):
        area, shape, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = width * height * (SMALLEST + area * (1 - SMALLEST))
        shape = math.exp(math.log(TALLEST) + shape * (math.log(FLATTEST) - math.log(TALLEST)))
        wide, high = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(x * (width - wide + 1)), int(y * (height - high + 1))
            return left, top, left + wide, top + high
    wide = min(width, round(height * FLATTEST))
    high = min(height, round(width / TALLEST))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def scale(image: Image, width: int, height: int) -> Image:
    """Resize with an antialiased bilinear filter."""
    from PIL import Image

    return image.resize((width, height), Image.Resampling.BILINEAR)


def pixels(image: Image) -> Tensor:
    """Convert an RGB image to uint8 (3, height, width)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
