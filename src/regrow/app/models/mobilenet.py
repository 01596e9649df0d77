# SPDX-License-Identifier: MIT
"""MobileNetV2 and inverted residual blocks."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from regrow.app.models.init import check_counts, he_normal
from regrow.utils.errors import ConfigError

Norm = type[nn.BatchNorm2d] | partial[nn.BatchNorm2d]


class Conv2dSame(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": an odd pixel is added right and below.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Kernel size.
        stride: Stride of the convolution.
        groups: Channel groups.

    Example:
        >>> import torch
        >>> Conv2dSame(1, 1, 3, stride=2)(torch.zeros(1, 1, 7, 8)).shape
        torch.Size([1, 1, 4, 4])
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, outputs, ceil(H / stride), ceil(W / stride))."""
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
        inputs: Input channels.
        outputs: Output channels.
        kernel: Kernel size, odd.
        stride: Stride of the convolution.
        groups: Channel groups.
        norm: Factory of the norm, called with the number of channels.
        same: Whether to pad as TensorFlow does (differs with stride > 1).

    Example:
        >>> len(conv_norm(3, 8, kernel=3, stride=2))
        3
    """
    conv: nn.Conv2d
    if same and stride > 1:
        conv = Conv2dSame(inputs, outputs, kernel, stride, groups)
    else:
        conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
    return nn.Sequential(conv, norm(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Inverted residual: 1 x 1 expansion, depthwise convolution, 1 x 1 projection.

    The input is added unless the shape changes.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        expansion: Factor of the inner channels; 1 omits the expansion.
        stride: Stride of the depthwise convolution.
        kernel: Kernel size.
        norm: Factory of the norm, called with the number of channels.
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
        inner = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm(inputs, inner, 1, norm=norm))
        layers += [
            conv_norm(inner, inner, kernel, stride, groups=inner, norm=norm, same=same),
            nn.Conv2d(inner, outputs, 1, bias=False),
            norm(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.adds = inputs == outputs and stride == 1

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, outputs, H / stride, W / stride) of maps (N, inputs, H, W)."""
        out: Tensor = self.conv(maps)
        return maps + out if self.adds else out


# expansion, channels, blocks, stride of the first one
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """MobileNetV2; the weights of torchvision fit it.

    3,504,872 parameters for 1000 classes and, at 224 x 224, 301 million multiply-adds. For small
    images (CIFAR) the first convolution and the second stage have stride 1, so that 32 x 32 pixels
    end as 4 x 4. He initialization; the linear layer is initialized from N(0, 0.01).

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        small: Whether images are about 32 x 32 pixels.
        dropout: In [0, 1), before the linear layer.

    Raises:
        ConfigError: For an invalid value.

    Source: Sandler et al. 2018, arXiv 1801.04381, table 2.

    Example:
        >>> import torch
        >>> MobileNetV2(num_classes=10, small=True)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        small: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        self.features = nn.Sequential(conv_norm(in_channels, 32, 3, stride=1 if small else 2))
        inputs = 32
        for expansion, outputs, blocks, stride in STAGES:
            for block in range(blocks):
                halves = stride if block == 0 and not (small and outputs == 24) else 1
                self.features.append(InvertedResidual(inputs, outputs, expansion, halves))
                inputs = outputs
        self.features.append(conv_norm(inputs, 1280, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = head(1280, num_classes, dropout)
        he_normal(self.features)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, in_channels, H, W)."""
        logits: Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return logits


def head(inputs: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Return dropout and a linear layer, initialized from N(0, 0.01).

    Raises:
        ConfigError: For a dropout outside [0, 1).

    Example:
        >>> head(8, 2, 0.2)[1].bias.tolist()
        [0.0, 0.0]
    """
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout must be in [0, 1), got {dropout}: write 0.2 for 20 %")
    linear = nn.Linear(inputs, num_classes)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Dropout(dropout), linear)
