# SPDX-License-Identifier: MIT
"""ResNet for ImageNet, without torchvision."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.app.models.init import check_counts, he_normal
from regrow.utils.errors import ConfigError, check_count

# blocks in each of the four stages
_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_WIDTHS = (64, 128, 256, 512)


class ImageNetResNet(nn.Module):
    """ResNet for ImageNet; the weights of torchvision fit it.

    Blocks halve the image in their 3 x 3 convolution ("v1.5"; the paper: in the first 1 x 1).
    ResNet-50 has 25,557,032 parameters and, at 224 x 224, 4.09 billion multiply-adds.
    He initialization; the linear layer is initialized from N(0, 0.01).

    Args:
        depth: 18, 34, 50 or 101.
        num_classes: Number of outputs.
        in_channels: Channels of the images, which have any size from 32 x 32 on.
        zero_residual: Whether the weight of the last norm of each block starts at 0 (Goyal et al.
            2017, section 5.1).

    Raises:
        ConfigError: For another depth.

    Source: He et al. 2016, "Deep residual learning", table 1.

    Example:
        >>> import torch
        >>> ImageNetResNet(18, num_classes=5)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        depth: int = 50,
        num_classes: int = 1000,
        in_channels: int = 3,
        zero_residual: bool = False,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        if depth not in _STAGES:
            near = min(_STAGES, key=lambda known: abs(known - check_count("depth", depth)))
            raise ConfigError(f"depth must be 18, 34, 50 or 101, got {depth}: write {near}")
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs, growth = 64, 1 if depth < 50 else 4
        stages = []
        for width, blocks in zip(_WIDTHS, _STAGES[depth], strict=True):
            outputs, stride = growth * width, 1 if width == 64 else 2
            first = _block(inputs, width, outputs, stride)
            rest = (_block(outputs, width, outputs, 1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *rest))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        he_normal(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        if zero_residual:
            for module in self.modules():
                if isinstance(module, Bottleneck):
                    nn.init.zeros_(module.bn3.weight)
                elif isinstance(module, BasicBlock):
                    nn.init.zeros_(module.bn2.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, in_channels, H, W)."""
        maps = self.maxpool(self.bn1(self.conv1(images)).relu())
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        logits: Tensor = self.fc(self.avgpool(maps).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        stride: Stride of the first convolution.

    Example:
        >>> import torch
        >>> BasicBlock(4, 8, stride=2)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, outputs, H / stride, W / stride) of maps (N, inputs, H, W)."""
        residual = self.bn2(self.conv2(self.bn1(self.conv1(maps)).relu()))
        shortcut = maps if self.downsample is None else self.downsample(maps)
        out: Tensor = (residual + shortcut).relu()
        return out


class Bottleneck(nn.Module):
    """Convolutions 1 x 1, 3 x 3 and 1 x 1 and a shortcut.

    Args:
        inputs: Channels coming in.
        width: Channels within.
        outputs: Channels going out.
        stride: Stride of the 3 x 3 convolution.

    Example:
        >>> import torch
        >>> Bottleneck(8, 4, 16, stride=2)(torch.zeros(1, 8, 8, 8)).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, outputs, H / stride, W / stride) of maps (N, inputs, H, W)."""
        inner = self.bn2(self.conv2(self.bn1(self.conv1(maps)).relu())).relu()
        shortcut = maps if self.downsample is None else self.downsample(maps)
        out: Tensor = (self.bn3(self.conv3(inner)) + shortcut).relu()
        return out


def _block(inputs: int, width: int, outputs: int, stride: int) -> nn.Module:
    if outputs == width:
        return BasicBlock(inputs, outputs, stride)
    return Bottleneck(inputs, width, outputs, stride)


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
