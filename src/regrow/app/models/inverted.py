# SPDX-License-Identifier: MIT
"""Inverted residuals: the block of MobileNetV2 and of EfficientNet-Lite."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

Norm = type[nn.BatchNorm2d] | partial[nn.BatchNorm2d]


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME" does: what is odd goes right and below.

    Args:
        inputs: Channels coming in.
        outputs: Channels going out.
        kernel: Its side.
        stride: Of the convolution.
        groups: Of channels.

    Example:
        >>> import torch
        >>> SameConv2d(1, 1, 3, stride=2)(torch.zeros(1, 1, 7, 8)).shape
        torch.Size([1, 1, 4, 4])
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, outputs, ceil(H / stride), ceil(W / stride)) of maps (N, inputs, H, W)."""
        rows, columns = (self._padding(size) for size in maps.shape[2:])
        return super().forward(F.pad(maps, (*columns, *rows)))

    def _padding(self, size: int) -> tuple[int, int]:
        stride, kernel = self.stride[0], self.kernel_size[0]
        whole = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        return whole // 2, whole - whole // 2


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    norm: Norm = nn.BatchNorm2d,
    same: bool = False,
) -> nn.Sequential:
    """Convolution, norm and ReLU6.

    Args:
        inputs: Channels coming in.
        outputs: Channels going out.
        kernel: Its side, odd.
        stride: Of the convolution.
        groups: Of channels.
        norm: Makes a norm for so many channels.
        same: Whether to pad as TensorFlow does; with stride 1 that is no difference.

    Example:
        >>> len(conv_norm(3, 8, kernel=3, stride=2))
        3
    """
    conv: nn.Conv2d
    if same and stride > 1:
        conv = SameConv2d(inputs, outputs, kernel, stride, groups)
    else:
        conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
    return nn.Sequential(conv, norm(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """1 x 1 to more channels, a depthwise convolution, 1 x 1 to few; added to what came in.

    The sum is left out where the shape changes.

    Args:
        inputs: Channels coming in.
        outputs: Channels going out.
        expansion: How many times more channels there are within; 1 leaves the first part out.
        stride: Of the depthwise convolution.
        kernel: Its side.
        norm: Makes a norm for so many channels.
        same: Whether to pad as TensorFlow does.

    Source: Sandler et al. 2018, arXiv 1801.04381, table 1.

    Example:
        >>> import torch
        >>> InvertedResidual(4, 8, expansion=6, stride=2)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        stride: int = 1,
        kernel: int = 3,
        norm: Norm = nn.BatchNorm2d,
        same: bool = False,
    ) -> None:
        super().__init__()
        within = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm(inputs, within, 1, norm=norm))
        layers += [
            conv_norm(within, within, kernel, stride, groups=within, norm=norm, same=same),
            nn.Conv2d(within, outputs, 1, bias=False),
            norm(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.adds = inputs == outputs and stride == 1

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, outputs, H / stride, W / stride) of maps (N, inputs, H, W)."""
        out: Tensor = self.conv(maps)
        return maps + out if self.adds else out
