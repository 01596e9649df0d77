# SPDX-License-Identifier: MIT
"""Linear and convolutional layers as matrix products of unfolded inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class LayerRows:
    """A weight as `outputs = inputs @ matrix.T + bias`, for each of its groups.

    Attributes:
        name: The full name of the weight.
        module: The module that is called: here a Linear layer, or a convolution of any kind.

    Example:
        >>> layer = LayerRows("weight", nn.Conv1d(2, 4, 3, groups=2))
        >>> layer.matrix.shape, layer.inputs((torch.zeros(5, 2, 8),), {}).shape
        (torch.Size([2, 2, 3]), torch.Size([2, 30, 3]))
    """

    name: str
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """The weight itself."""
        return cast(Tensor, self.module.weight)

    @property
    def bias(self) -> Tensor | None:
        """The bias itself, in the order of the outputs of all groups."""
        return cast("Tensor | None", self.module.bias)

    @property
    def groups(self) -> int:
        """The number of groups; 1 for a Linear layer."""
        return cast(int, getattr(self.module, "groups", 1))

    @property
    def matrix(self) -> Tensor:
        """A copy of the weight as `(groups, out / groups, features)`."""
        return self.to_matrix(self.weight.detach())

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Reshape a tensor of the weight's shape to `(groups, out / groups, features)`."""
        groups = self.groups
        if not isinstance(self.module, _ConvTransposeNd):
            return weight.reshape(groups, weight.shape[0] // groups, -1).clone()
        kernel = tuple(range(2, weight.ndim))
        parts = weight.flip(kernel).reshape(groups, -1, *weight.shape[1:])
        return parts.transpose(1, 2).reshape(groups, weight.shape[1], -1).clone()

    def to_weight(self, matrix: Tensor) -> Tensor:
        """Undo `to_matrix`."""
        shape = self.weight.shape
        if not isinstance(self.module, _ConvTransposeNd):
            return matrix.reshape(shape)
        parts = matrix.reshape(self.groups, shape[1], -1, *shape[2:]).transpose(1, 2)
        return parts.reshape(shape).flip(tuple(range(2, len(shape))))

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Unfold the input of a call to `(groups, positions, features)`."""
        x: Tensor = args[0] if args else kwargs["input"]
        if not isinstance(self.module, _ConvNd):
            return x.reshape(1, -1, x.shape[-1])
        x = x if x.ndim == self.weight.ndim else x.unsqueeze(0)  # one example
        patches = _patches(self.module, x)  # (batch, channels, taps, *positions)
        batch, channels, taps = patches.shape[:3]
        grouped = patches.reshape(batch, self.groups, channels // self.groups * taps, -1)
        return grouped.permute(1, 0, 3, 2).reshape(self.groups, -1, grouped.shape[2])

    def outputs(self, rows: Tensor, kept: Tensor | None = None) -> Tensor:
        """Compute the outputs `(groups, positions, out / groups)` of unfolded inputs, in float64.

        Args:
            rows: A result of `inputs`, or some of its positions.
            kept: Bool, the outputs of all groups that are computed; None: all.
        """
        matrix = self.matrix.double()
        shift = matrix.new_zeros(matrix.shape[:2])
        if self.bias is not None:
            shift = self.bias.detach().double().reshape(shift.shape)
        if kept is not None:
            chosen = kept.to(matrix.device).nonzero().flatten()
            matrix = matrix.flatten(0, 1)[chosen].reshape(len(rows), -1, matrix.shape[2])
            shift = shift.flatten()[chosen].reshape(matrix.shape[:2])
        return rows.double() @ matrix.mT + shift[:, None]


def _patches(module: _ConvNd, x: Tensor) -> Tensor:
    """Return the inputs of each kernel position, `(batch, channels, taps, *positions)`."""
    kernel, dilation = module.kernel_size, module.dilation
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if isinstance(module, _ConvTransposeNd):  # a convolution of the input with zeros in between
        padding, more = cast(tuple[int, ...], module.padding), module.output_padding
        x = _spread(x, module.stride)
        sides = [(r - p, r - p + o) for r, p, o in zip(reach, padding, more, strict=True)]
        x, stride = F.pad(x, _flat(sides)), (1,) * len(kernel)
    else:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        pad: Any = module._reversed_padding_repeated_twice
        x, stride = F.pad(x, pad, mode=mode), module.stride
    counts = [
        (size - r - 1) // s + 1 for size, r, s in zip(x.shape[2:], reach, stride, strict=True)
    ]
    taps = []
    for offsets in product(*map(range, kernel)):
        where = [
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offsets, dilation, counts, stride, strict=True)
        ]
        taps.append(x[(slice(None), slice(None), *where)])
    return torch.stack(taps, 2)


def _spread(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Put `stride - 1` zeros between neighbours."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    return spread


def _flat(sides: list[tuple[int, int]]) -> list[int]:
    """Return paddings in the order of `F.pad`: last dimension first."""
    return [side for pair in reversed(sides) for side in pair]
