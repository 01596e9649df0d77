# SPDX-License-Identifier: MIT
"""Shear, translate, rotate."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

Matrix = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): pixel (x, y) of the result comes from (ax + by + c, dx + ey + f)."""


def shear_x(amount: float) -> Matrix:
    """Rows move sideways, in proportion to their distance from the top."""
    return (1, amount, 0, 0, 1, 0)


def shear_y(amount: float) -> Matrix:
    """Columns move up or down, in proportion to their distance from the left."""
    return (1, 0, 0, amount, 1, 0)


def translate_x(pixels: float) -> Matrix:
    """Moves to the left."""
    return (1, 0, pixels, 0, 1, 0)


def translate_y(pixels: float) -> Matrix:
    """Moves up."""
    return (1, 0, 0, 0, 1, pixels)


def rotate(degrees: float, height: int, width: int) -> Matrix:
    """Turns counter-clockwise about the centre."""
    sine, cosine = math.sin(-math.radians(degrees)), math.cos(math.radians(degrees))
    x, y = width / 2, height / 2
    return (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)


def warp(images: Tensor, matrices: tuple[Matrix, ...], which: Tensor, fill: Tensor) -> Tensor:
    """Draws each image anew through one of a few matrices.

    Centres of pixels lie at half numbers, as in Pillow; a place outside the image is filled.

    Args:
        images: Shape (N, C, H, W), any dtype.
        matrices: From places of the result to places of the image.
        which: The number of each image's matrix, shape (N,), on the CPU.
        fill: The colour of what lies outside, shape (C,).

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
    found = images.flatten(2).gather(2, places.clamp(min=0).expand(-1, channels, -1))
    colour = fill.to(images.device, images.dtype).view(1, -1, 1)
    return torch.where(places < 0, colour, found).view(images.shape)


@functools.lru_cache(maxsize=256)
def _places(matrix: Matrix, height: int, width: int) -> Tensor:
    """For each pixel of the result, the flat place of its source, or -1."""
    a, b, c, d, e, f = matrix
    x = torch.arange(width, dtype=torch.float64) + 0.5
    y = (torch.arange(height, dtype=torch.float64) + 0.5)[:, None]
    column = (a * x + b * y + c).floor().long()
    row = (d * x + e * y + f).floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return torch.where(inside, row * width + column, -1).flatten()
