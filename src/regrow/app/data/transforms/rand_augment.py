# SPDX-License-Identifier: MIT
"""RandAugment on batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regrow.app.data.transforms import affine_ops as warps
from regrow.app.data.transforms import color_ops as colours

STRONGEST = 30


Operation = Callable[[Tensor, float, Tensor, Tensor], Tensor]
"""Images, strength in [0, 1], signs (N,) of -1 or 1 on the CPU, mean colour (C,) -> images."""


def _mixed(operation: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    """An operation with a factor around 1, from 0.1 to 1.9."""
    return lambda x, s, sign, fill: operation(x, (1 + 0.9 * s * sign).to(x.device))


def _warped(matrix: Callable[[float, int, int], warps.Matrix], most: float) -> Operation:
    """A warp by up to `most`, one way or the other."""

    def operation(images: Tensor, strength: float, sign: Tensor, fill: Tensor) -> Tensor:
        both = tuple(matrix(way * most * strength, *images.shape[2:]) for way in (-1, 1))
        return warps.warp(images, both, (sign > 0).long(), fill)

    return operation


# As torchvision scales them: https://docs.pytorch.org/vision/stable/transforms.html, RandAugment.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda x, s, sign, fill: x,
    "shear_x": _warped(lambda v, height, width: warps.shear_x(v), 0.3),
    "shear_y": _warped(lambda v, height, width: warps.shear_y(v), 0.3),
    "translate_x": _warped(lambda v, height, width: warps.translate_x(int(v * width)), 150 / 331),
    "translate_y": _warped(lambda v, height, width: warps.translate_y(int(v * height)), 150 / 331),
    "rotate": _warped(warps.rotate, 30),
    "brightness": _mixed(colours.brightness),
    "color": _mixed(colours.colour),
    "contrast": _mixed(colours.contrast),
    "sharpness": _mixed(colours.sharpness),
    "posterize": lambda x, s, sign, fill: colours.posterize(x, 8 - round(4 * s)),
    "solarize": lambda x, s, sign, fill: colours.solarize(x, 255 * (1 - s)),
    "autocontrast": lambda x, s, sign, fill: colours.autocontrast(x),
    "equalize": lambda x, s, sign, fill: colours.equalize(x),
}


def rand_augment(
    images: Tensor, generator: torch.Generator, ops: int, magnitude: int, fill: Tensor
) -> Tensor:
    """Sends each image through `ops` operations, drawn with equal chance, of one strength.

    Args:
        images: uint8, shape (N, C, H, W), with 1 or 3 channels.
        generator: On the CPU, so that every device draws the same.
        ops: How many operations an image goes through.
        magnitude: Their strength, from 0 to 30; the sign is drawn.
        fill: The colour of what warps uncover, shape (C,).

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
