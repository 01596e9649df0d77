# SPDX-License-Identifier: MIT
"""RandAugment on batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regrow.app.data.transforms import color_ops
from regrow.app.data.transforms.affine_ops import (
    Matrix,
    rotate,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    warp,
)

STRONGEST = 30

Operation = Callable[[Tensor, float, Tensor, Tensor], Tensor]
"""Images, strength in [0, 1], signs (N,) of -1 or 1 on the CPU, mean color (C,) -> images."""


def _blend(operation: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    """Return an operation with a factor from 0.1 to 1.9."""
    return lambda x, s, sign, fill: operation(x, (1 + 0.9 * s * sign).to(x.device))


def _warp(matrix: Callable[[float, int, int], Matrix], most: float) -> Operation:
    """Return a warp by up to `most` in either direction."""

    def operation(images: Tensor, strength: float, sign: Tensor, fill: Tensor) -> Tensor:
        both = tuple(matrix(way * most * strength, *images.shape[2:]) for way in (-1, 1))
        return warp(images, both, (sign > 0).long(), fill)

    return operation


# As torchvision scales them: https://docs.pytorch.org/vision/stable/transforms.html, RandAugment.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda x, s, sign, fill: x,
    "shear_x": _warp(lambda v, height, width: shear_x(v), 0.3),
    "shear_y": _warp(lambda v, height, width: shear_y(v), 0.3),
    "translate_x": _warp(lambda v, height, width: translate_x(int(v * width)), 150 / 331),
    "translate_y": _warp(lambda v, height, width: translate_y(int(v * height)), 150 / 331),
    "rotate": _warp(rotate, 30),
    "brightness": _blend(color_ops.brightness),
    "color": _blend(color_ops.color),
    "contrast": _blend(color_ops.contrast),
    "sharpness": _blend(color_ops.sharpness),
    "posterize": lambda x, s, sign, fill: color_ops.posterize(x, 8 - round(4 * s)),
    "solarize": lambda x, s, sign, fill: color_ops.solarize(x, 255 * (1 - s)),
    "autocontrast": lambda x, s, sign, fill: color_ops.autocontrast(x),
    "equalize": lambda x, s, sign, fill: color_ops.equalize(x),
}


def rand_augment(
    images: Tensor, generator: torch.Generator, ops: int, magnitude: int, fill: Tensor
) -> Tensor:
    """Apply `ops` random operations of one strength to each image.

    Args:
        images: uint8, shape (N, C, H, W), with 1 or 3 channels.
        generator: On the CPU, so that results do not depend on the device.
        ops: Operations per image.
        magnitude: Strength, from 0 to 30; the sign is random.
        fill: Color of uncovered pixels, shape (C,).

    Returns:
        Images of the same shape and dtype.

    Source: Cubuk et al. 2020, arXiv 1909.13719.

    Example:
        >>> x = torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)
        >>> out = rand_augment(x, torch.Generator().manual_seed(0), 2, 9, torch.zeros(3))
        >>> out.shape, out.dtype
        (torch.Size([2, 3, 8, 8]), torch.uint8)
    """
    drawn = torch.randint(0, len(OPERATIONS), (ops, len(images)), generator=generator)
    signs = 2 * torch.randint(0, 2, (ops, len(images)), generator=generator) - 1
    images = images.clone()
    for number, sign in zip(drawn, signs, strict=True):
        for which in number.unique().tolist():
            mine = (number == which).nonzero().flatten()
            place = mine.to(images.device)
            operation = list(OPERATIONS.values())[which]
            images[place] = operation(images[place], magnitude / STRONGEST, sign[mine], fill)
    return images
