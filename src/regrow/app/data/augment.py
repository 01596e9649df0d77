# SPDX-License-Identifier: MIT
"""Augmentation and normalization of batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.app.data.image_transforms import import_transforms
from regrow.data.dataset_loader import seed_generators
from regrow.data.tensor_loader import Transform
from regrow.utils.errors import ConfigError, check_choice, check_count, suggest

Augment = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None
"""The name of a step, or several with settings: `["crop_flip", {"cutout": 16}]`."""


STEPS: dict[str, dict[str, int | None]] = {
    "crop_flip": {"padding": None},  # in pixels; None: 4, or 2 for images of at most 16 pixels
    "cutout": {"size": 16},  # side in pixels; the paper uses 16 for CIFAR-10 and 8 for CIFAR-100
    "rand_augment": {"ops": 2, "magnitude": 9},  # operations per image; strength from 0 to 30
}
"""The settings of each step and their defaults; a bare value is the first setting."""


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
    """
    steps = [(name, _check_settings(name, settings)) for name, settings in _list_steps(given)]
    if "rand_augment" in dict(steps) and (scale != 255 or min(shape[1:]) < 3):
        raise ConfigError(
            f"augment: rand_augment needs 8-bit images of at least 3 x 3 pixels, these are "
            f"{shape[1]} x {shape[2]} with pixels from 0 to {scale:g}: write crop_flip"
        )
    fill = torch.tensor([round(value * scale) for value in mean], dtype=torch.uint8)

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        for name, settings in steps:
            images = _apply(name, settings, images, generator, fill)
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


def _check_settings(name: str, given: Any) -> dict[str, Any]:
    """Return all settings of a step."""
    defaults = STEPS[check_choice("augment", name, STEPS)]
    settings = {} if given is None else given
    if not isinstance(settings, Mapping):
        settings = {next(iter(defaults)): settings}
    for key, value in settings.items():
        if key not in defaults:
            raise ConfigError(f"augment: {name} has no {key!r}: {suggest(str(key), [*defaults])}")
        if value is not None or defaults[key] is not None:
            check_count(f"augment: {name} {key}", value, least=0 if key == "magnitude" else 1)
    if settings.get("magnitude", 0) > 30:
        raise ConfigError(
            f"augment: {name} magnitude must be from 0 to 30, got {settings['magnitude']}"
        )
    return {**defaults, **settings}


def _apply(
    name: str, settings: dict[str, Any], images: Tensor, generator: torch.Generator, fill: Tensor
) -> Tensor:
    if name == "crop_flip":
        usual = 4 if min(images.shape[2:]) > 16 else 2
        return crop_flip(images, generator, settings["padding"] or usual)
    if name == "cutout":
        return cutout(images, generator, settings["size"], fill)
    v2 = import_transforms("augment=rand_augment")
    transform = v2.RandAugment(settings["ops"], settings["magnitude"], fill=fill.tolist())
    with seed_generators(generator.initial_seed()):
        # draws anew for each image: about 60 ms for 128 of CIFAR
        return torch.stack([transform(image) for image in images])


def crop_flip(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """Pad images (N, C, H, W) with zeros, crop at random to the old size, and flip half of them.

    The generator is on the CPU, so that results do not depend on the device.

    Source: He et al. 2016, "Deep residual learning", section 4.2 (padding 4 for 32 x 32).
    """
    count, channels, height, width = images.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator).bool()
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    # one gather of flat indices crops and flips at once
    places = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    index = places.view(count, 1, height * width).to(images.device)
    padded = F.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, index.expand(-1, channels, -1)).view(images.shape)


def cutout(images: Tensor, generator: torch.Generator, size: int, fill: Tensor) -> Tensor:
    """Cover one square of each image (N, C, H, W); its center is a uniformly random pixel.

    The color of the square has shape (C,); the mean color is 0 after normalization.

    Source: DeVries and Taylor 2017, arXiv 1708.04552.
    """
    count, _, height, width = images.shape

    def covered(length: int) -> Tensor:
        start = torch.randint(0, length, (count, 1), generator=generator) - size // 2
        place = torch.arange(length)
        return (start <= place) & (place < start + size)

    rows, columns = covered(height), covered(width)
    square = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    return torch.where(square, fill.to(images.device, images.dtype).view(-1, 1, 1), images)


def make_normalizer(
    scale: float, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
) -> Callable[[Tensor], Tensor]:
    """Return a function that computes `(images / scale - mean) / std` per channel as float32.

    Images are (N, C, H, W) of any dtype, with pixels from 0 to `scale`.
    """
    gain = torch.tensor([1 / (scale * s) for s in std], device=device).view(-1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    shift = shift.view(-1, 1, 1)
    return lambda images: images.mul(gain).add_(shift)
