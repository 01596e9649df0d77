# SPDX-License-Identifier: MIT
"""Linear and convolutional layers as matrix products of unfolded inputs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class LayerRows:
    """A layer as `outputs = inputs @ matrix.T + bias`, for each of its groups.

    Attributes:
        name: The full name of the layer's weight.
        module: A Linear layer, or a convolution of any kind.

    Example:
        >>> layer = LayerRows("weight", nn.Conv1d(2, 4, 3, groups=2))
        >>> layer.matrix.shape, layer.inputs(torch.zeros(5, 2, 8)).shape
        (torch.Size([2, 2, 3]), torch.Size([2, 30, 3]))
    """

    name: str
    module: nn.Linear | _ConvNd

    @property
    def weight(self) -> Tensor:
        """The weight itself."""
        return self.module.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias itself, in the order of the outputs of all groups."""
        return self.module.bias

    @property
    def groups(self) -> int:
        """The number of groups; 1 for a Linear layer."""
        return 1 if isinstance(self.module, nn.Linear) else self.module.groups

    @property
    def matrix(self) -> Tensor:
        """A copy of the weight as `(groups, out / groups, features)`."""
        return self.to_matrix(self.module.weight.detach())

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
        shape = self.module.weight.shape
        if not isinstance(self.module, _ConvTransposeNd):
            return matrix.reshape(shape)
        parts = matrix.reshape(self.groups, shape[1], -1, *shape[2:]).transpose(1, 2)
        return parts.reshape(shape).flip(tuple(range(2, len(shape))))

    def inputs(self, x: Tensor) -> Tensor:
        """Unfold an input to `(groups, positions, features)`, as `matrix` multiplies it."""
        if isinstance(self.module, nn.Linear):
            return x.reshape(1, -1, x.shape[-1])
        x = x if x.ndim == self.module.weight.ndim else x.unsqueeze(0)  # one example
        patches = _patches(self.module, x)  # (batch, channels, taps, *positions)
        batch, channels, taps = patches.shape[:3]
        grouped = patches.reshape(batch, self.groups, channels // self.groups * taps, -1)
        return grouped.permute(1, 0, 3, 2).reshape(self.groups, -1, grouped.shape[2])

    def outputs(self, y: Tensor) -> Tensor:
        """Reshape an output to `(groups, positions, out / groups)`."""
        if isinstance(self.module, nn.Linear):
            return y.reshape(1, -1, y.shape[-1])
        y = y if y.ndim == self.module.weight.ndim else y.unsqueeze(0)
        parts = y.reshape(len(y), self.groups, y.shape[1] // self.groups, -1)
        return parts.permute(1, 0, 3, 2).reshape(self.groups, -1, parts.shape[2])


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
