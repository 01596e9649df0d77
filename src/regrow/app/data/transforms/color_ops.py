# SPDX-License-Identifier: MIT
"""Colour operations.

Images are uint8 (N, C, H, W) with one grey or three (red, green, blue) channels, and so is what
comes back. Source: the definitions in Pillow's ImageOps and ImageEnhance.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SMOOTH = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13


def posterize(images: Tensor, bits: int) -> Tensor:
    """Keeps the `bits` highest bits of each pixel."""
    return images & (0xFF << (8 - bits) & 0xFF)


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Inverts the pixels that are at or above the threshold."""
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel of each image, so that it reaches from 0 to 255."""
    low, high = (extreme.double() for extreme in torch.aminmax(images.flatten(2), dim=2))
    span = (high - low)[..., None, None]
    # a true division: 255 / tensor multiplies by a rounded reciprocal, and 255 would become 254
    scale = torch.full_like(span, 255) / span.clamp(min=1)
    stretched = (images * scale - low[..., None, None] * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(span > 0, stretched, images)


def equalize(images: Tensor) -> Tensor:
    """Spreads each channel of each image, so that its values are about equally frequent."""
    count, channels = images.shape[:2]
    pixels = images.flatten(2).long()
    ones = torch.ones_like(pixels)
    histogram = pixels.new_zeros(count, channels, 256).scatter_add_(2, pixels, ones)
    # the pixels of the brightest value that occurs do not count
    brightest = histogram.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - brightest) // 255
    below = histogram.cumsum(2) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(2, pixels).to(torch.uint8).view_as(images)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Mixes with black: factor (N,), 0 is black, 1 the image."""
    return _blend(torch.zeros_like(images), images, factor)


def colour(images: Tensor, factor: Tensor) -> Tensor:
    """Mixes with the grey image: factor (N,), 0 is grey, 1 the image."""
    return _blend(_grey(images).expand_as(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Mixes with the mean grey: factor (N,), 0 is one grey, 1 the image."""
    mean = _grey(images).double().mean((1, 2, 3), keepdim=True).add(0.5).floor()
    return _blend(mean.expand_as(images), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Mixes with the smoothed image: factor (N,), 0 is smooth, 1 the image, 2 is sharp."""
    channels = images.shape[1]
    kernel = _SMOOTH.to(images.device).expand(channels, 1, 3, 3)
    inner = F.conv2d(images.float(), kernel, groups=channels).add(0.5).floor()
    smooth = images.float()  # its border stays as it was
    smooth[..., 1:-1, 1:-1] = inner
    return _blend(smooth, images, factor)


def _grey(images: Tensor) -> Tensor:
    """Luma of ITU-R 601-2, as whole numbers, (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.int().unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16)[:, None]


def _blend(plain: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """`plain + factor * (images - plain)`, cut off to a whole number in [0, 255]."""
    plain = plain.float()
    mixed = plain + factor.float().view(-1, 1, 1, 1) * (images.float() - plain)
    return mixed.clamp_(0, 255).to(torch.uint8)
