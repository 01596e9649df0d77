# SPDX-License-Identifier: MIT
"""Crop, flip, cut out and normalize batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_flip(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """Pad with zeros, crop at random to the old size, and flip half of the images.

    Args:
        images: Shape (N, C, H, W), any dtype.
        generator: On the CPU, so that results do not depend on the device.
        padding: Pixels added on each side.

    Returns:
        Images of the same shape and dtype.

    Source: He et al. 2016, "Deep residual learning", section 4.2 (padding 4 for 32 x 32).

    Example:
        >>> x = torch.ones(2, 1, 8, 8)
        >>> crop_flip(x, torch.Generator().manual_seed(0), 2).shape
        torch.Size([2, 1, 8, 8])
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
    """Cover one square of each image; its center is a uniformly random pixel.

    Args:
        images: Shape (N, C, H, W), any dtype.
        generator: On the CPU, so that results do not depend on the device.
        size: Side of the square in pixels.
        fill: Color of the square, shape (C,); the mean color is 0 after normalization.

    Returns:
        Images of the same shape and dtype.

    Source: DeVries and Taylor 2017, arXiv 1708.04552.

    Example:
        >>> x = torch.ones(1, 1, 5, 5)
        >>> int(cutout(x, torch.Generator().manual_seed(0), 2, torch.zeros(1)).sum())
        21
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
    """Return a function that computes `(images / scale - mean) / std` per channel.

    Args:
        scale: Largest pixel value, such as 255.
        mean: Per channel, for pixels in [0, 1].
        std: Per channel, likewise.
        device: Device of the images.

    Returns:
        Images (N, C, H, W) of any dtype -> float32 images of the same shape.

    Example:
        >>> normalize = make_normalizer(255, mean=(0.5,), std=(0.25,))
        >>> normalize(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)).item()
        2.0
    """
    gain = torch.tensor([1 / (scale * s) for s in std], device=device).view(-1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    shift = shift.view(-1, 1, 1)
    return lambda images: images.mul(gain).add_(shift)
