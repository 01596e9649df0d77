# SPDX-License-Identifier: MIT
"""Augmentation of training batches, from names and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from regrow.app.data.loading.batch_ops import crop_flip, cutout
from regrow.app.data.loading.image_transforms import draw_from, import_transforms
from regrow.utils.errors import ConfigError, check_choice, check_count, suggest

Transform = Callable[[Tensor, torch.Generator], Tensor]
"""Images (N, C, H, W) and the generator of this batch -> images (N, C, H, W)."""

Augment = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None
"""The name of a step, or several with settings: `["crop_flip", {"cutout": 16}]`."""


class AugmentStep(Protocol):
    """Images (N, C, H, W), uint8, the generator of the batch and the mean color -> images."""

    def __call__(self, images: Tensor, generator: torch.Generator, fill: Tensor) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class CropFlip:
    """Random crop and flip: `regrow.app.data.loading.batch_ops.crop_flip`.

    Attributes:
        padding: In pixels; None: 4, or 2 for images of at most 16 pixels.
    """

    padding: int | None = None

    def __post_init__(self) -> None:
        if self.padding is not None:
            check_count("augment: crop_flip padding", self.padding)

    def __call__(self, images: Tensor, generator: torch.Generator, fill: Tensor) -> Tensor:
        usual = 4 if min(images.shape[2:]) > 16 else 2
        return crop_flip(images, generator, usual if self.padding is None else self.padding)


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Cover a square with the mean color: `regrow.app.data.loading.batch_ops.cutout`.

    Attributes:
        size: Side in pixels; the paper uses 16 for CIFAR-10 and 8 for CIFAR-100.
    """

    size: int = 16

    def __post_init__(self) -> None:
        check_count("augment: cutout size", self.size)

    def __call__(self, images: Tensor, generator: torch.Generator, fill: Tensor) -> Tensor:
        return cutout(images, generator, self.size, fill)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """torchvision's RandAugment, drawn anew for each image; about 60 ms for 128 CIFAR images.

    Attributes:
        ops: Operations per image.
        magnitude: Strength, from 0 to 30.
    """

    ops: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        check_count("augment: rand_augment ops", self.ops)
        if check_count("augment: rand_augment magnitude", self.magnitude, least=0) > 30:
            raise ConfigError(
                f"augment: rand_augment magnitude must be from 0 to 30, got {self.magnitude}"
            )

    def __call__(self, images: Tensor, generator: torch.Generator, fill: Tensor) -> Tensor:
        v2 = import_transforms("augment=rand_augment")
        transform = v2.RandAugment(self.ops, self.magnitude, fill=fill.tolist())
        with draw_from(generator):
            return torch.stack([transform(image) for image in images])


STEPS: dict[str, type[CropFlip | Cutout | RandAugment]] = {
    "crop_flip": CropFlip,
    "cutout": Cutout,
    "rand_augment": RandAugment,
}


def make_augmentation(
    given: Augment, shape: tuple[int, int, int], mean: Sequence[float], scale: float
) -> Transform:
    """Return one function that applies the steps in order.

    Args:
        given: None, a name, a mapping from names to settings, or a list of both.
        shape: (channels, height, width) of an image.
        mean: Per channel, for pixels in [0, 1]: the fill color.
        scale: Largest pixel value; color operations need 255.

    Returns:
        Images (N, C, H, W) and a generator -> images of the same shape and dtype.

    Raises:
        ConfigError: For unknown steps and settings.

    Example:
        >>> cover = make_augmentation({"cutout": 4}, (1, 8, 8), mean=(0.5,), scale=255)
        >>> x = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> cover(x, torch.Generator().manual_seed(0)).unique().tolist()
        [0, 128]
    """
    steps = [_make_step(name, settings) for name, settings in _list_steps(given)]
    for step in steps:
        if isinstance(step, RandAugment) and (scale != 255 or min(shape[1:]) < 3):
            raise ConfigError(
                f"augment: rand_augment needs 8-bit images of at least 3 x 3 pixels, these are "
                f"{shape[1]} x {shape[2]} with pixels from 0 to {scale:g}: write crop_flip"
            )
    fill = torch.tensor([round(value * scale) for value in mean], dtype=torch.uint8)

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            images = step(images, generator, fill)
        return images

    return augment


def _list_steps(given: Augment) -> list[tuple[str, Any]]:
    if given is None:
        return []
    if isinstance(given, str):
        return [(given, None)]
    if isinstance(given, Mapping):
        return [(str(name), settings) for name, settings in given.items()]
    if isinstance(given, Sequence):
        return [pair for part in given for pair in _list_steps(part)]
    raise ConfigError(
        f"augment must be null, a name, or a list such as [crop_flip, {{cutout: 16}}], "
        f"got {given!r}"
    )


def _make_step(name: str, given: Any) -> AugmentStep:
    """Create one step; a bare value is its first setting."""
    step = STEPS[check_choice("augment", name, STEPS)]
    allowed = [field.name for field in dataclasses.fields(step)]
    settings = {} if given is None else given
    if not isinstance(settings, Mapping):
        settings = {allowed[0]: settings}
    for key in settings:
        if key not in allowed:
            raise ConfigError(f"augment: {name} has no {key!r}: {suggest(str(key), allowed)}")
    return step(**{str(key): value for key, value in settings.items()})
