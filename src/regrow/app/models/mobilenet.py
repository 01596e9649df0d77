# SPDX-License-Identifier: MIT
"""MobileNetV2 and its block (delete: torchvision)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from regrow.app.models.init import he_normal
from regrow.utils.errors import ConfigError, check_count

Norm = type[nn.BatchNorm2d] | partial[nn.BatchNorm2d]


class Conv2dSame(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME" does: what is odd goes right and below.

    Args:
        inputs: Channels coming in.
        outputs: Channels going out.
        kernel: Its side.
        stride: Of the convolution.
        groups: Of channels.

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
        conv = Conv2dSame(inputs, outputs, kernel, stride, groups)
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
    """Inverted residuals behind one ordinary convolution; torchvision's weights fit it.

    3,504,872 parameters for 1000 classes and, at 224 x 224, 301 million multiply-adds. For small
    images (CIFAR) the first convolution and the first stage that would halve the image do not,
    which leaves 4 x 4 of 32 x 32. He initialisation; the linear layer is drawn from N(0, 0.01).

    Args:
        num_classes: Outputs.
        in_channels: Of the images.
        small: Whether images are as small as 32 x 32.
        dropout: In [0, 1), before the linear layer.

    Raises:
        ConfigError: For a value that cannot be meant.

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
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
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
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        logits: Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return logits


def head(inputs: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Dropout and a linear layer, drawn from N(0, 0.01).

    Raises:
        ConfigError: For a dropout that is no fraction.

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
