# SPDX-License-Identifier: MIT
"""Color operations on batches.

Images are uint8 (N, C, H, W) with one gray or three (red, green, blue) channels, and so are the
results. Source: the definitions in Pillow's ImageOps and ImageEnhance.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SMOOTH = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13


def posterize(images: Tensor, bits: int) -> Tensor:
    """Keep the `bits` highest bits of each pixel."""
    return images & (0xFF << (8 - bits) & 0xFF)


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Invert the pixels that are at or above the threshold."""
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of each image to the range from 0 to 255."""
    low, high = (extreme.double() for extreme in torch.aminmax(images.flatten(2), dim=2))
    span = (high - low)[..., None, None]
    # a true division: 255 / tensor multiplies by a rounded reciprocal, and 255 would become 254
    scale = torch.full_like(span, 255) / span.clamp(min=1)
    stretched = (images * scale - low[..., None, None] * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(span > 0, stretched, images)


def equalize(images: Tensor) -> Tensor:
    """Equalize the histogram of each channel of each image."""
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
    """Blend with black: factor (N,), 0 is black, 1 the image."""
    return _blend(torch.zeros_like(images), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image: factor (N,), 0 is gray, 1 the image."""
    return _blend(_to_gray(images).expand_as(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray: factor (N,), 0 is uniform gray, 1 the image."""
    mean = _to_gray(images).double().mean((1, 2, 3), keepdim=True).add(0.5).floor()
    return _blend(mean.expand_as(images), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed image: factor (N,), 0 is smooth, 1 the image, 2 is sharp."""
    channels = images.shape[1]
    kernel = _SMOOTH.to(images.device).expand(channels, 1, 3, 3)
    inner = F.conv2d(images.float(), kernel, groups=channels).add(0.5).floor()
    smooth = images.float()  # the border is not smoothed
    smooth[..., 1:-1, 1:-1] = inner
    return _blend(smooth, images, factor)


def _to_gray(images: Tensor) -> Tensor:
    """Compute the luma of ITU-R 601-2 as integers, (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.int().unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16)[:, None]


def _blend(plain: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Compute `plain + factor * (images - plain)`, truncated to uint8."""
    plain = plain.float()
    mixed = plain + factor.float().view(-1, 1, 1, 1) * (images.float() - plain)
    return mixed.clamp_(0, 255).to(torch.uint8)
