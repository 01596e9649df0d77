# SPDX-License-Identifier: MIT
"""Shear, translate and rotate batches of images."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

Matrix = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): pixel (x, y) of the result comes from (ax + by + c, dx + ey + f)."""


def shear_x(amount: float) -> Matrix:
    """Shift rows in proportion to their distance from the top."""
    return (1, amount, 0, 0, 1, 0)


def shear_y(amount: float) -> Matrix:
    """Shift columns in proportion to their distance from the left."""
    return (1, 0, 0, amount, 1, 0)


def translate_x(pixels: float) -> Matrix:
    """Shift to the left."""
    return (1, 0, pixels, 0, 1, 0)


def translate_y(pixels: float) -> Matrix:
    """Shift up."""
    return (1, 0, 0, 0, 1, pixels)


def rotate(degrees: float, height: int, width: int) -> Matrix:
    """Rotate counter-clockwise about the center."""
    sine, cosine = math.sin(-math.radians(degrees)), math.cos(math.radians(degrees))
    x, y = width / 2, height / 2
    return (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)


def warp(images: Tensor, matrices: tuple[Matrix, ...], which: Tensor, fill: Tensor) -> Tensor:
    """Warp each image by one of several matrices, with nearest-neighbor sampling.

    Pixel centers lie at half-integers, as in Pillow.

    Args:
        images: Shape (N, C, H, W), any dtype.
        matrices: From positions in the result to positions in the image.
        which: Index of the matrix of each image, shape (N,), on the CPU.
        fill: Color outside the image, shape (C,).

    Returns:
        Images of the same shape and dtype.

    Example:
        >>> x = torch.arange(4).view(1, 1, 2, 2)
        >>> warp(x, (translate_x(1),), torch.tensor([0]), torch.tensor([9])).tolist()
        [[[[1, 9], [3, 9]]]]
    """
    _, channels, height, width = images.shape
    tables = torch.stack([_places(matrix, height, width) for matrix in matrices])
    places = tables[which].to(images.device)[:, None]  # (N, 1, H * W), -1 is outside
    moved = images.flatten(2).gather(2, places.clamp(min=0).expand(-1, channels, -1))
    color = fill.to(images.device, images.dtype).view(1, -1, 1)
    return torch.where(places < 0, color, moved).view(images.shape)


@functools.lru_cache(maxsize=256)
def _places(matrix: Matrix, height: int, width: int) -> Tensor:
    """Return the flat index of the source of each pixel of the result, or -1."""
    a, b, c, d, e, f = matrix
    x = torch.arange(width, dtype=torch.float64) + 0.5
    y = (torch.arange(height, dtype=torch.float64) + 0.5)[:, None]
    column = (a * x + b * y + c).floor().long()
    row = (d * x + e * y + f).floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return torch.where(inside, row * width + column, -1).flatten()
