# SPDX-License-Identifier: MIT
"""ResNet and wide ResNet for CIFAR."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.app.models.init import check_counts, he_normal
from regrow.utils.errors import ConfigError


class CifarResNet(nn.Module):
    """ResNet for CIFAR: three stages of n blocks, depth 6 n + 2.

    Stages have `width`, 2 and 4 times `width` channels; the second and third halve the image.
    Where the shape changes, the shortcut is a 1 x 1 convolution with batch norm ("option B" of the
    paper, which uses the weightless option A). ResNet-20 has 270,896
    weights, 272,474 parameters in all. He initialization.

    Args:
        depth: 8, 14, 20, 26, 32, 44, 56, 110, ...: 6 n + 2.
        width: Channels of the first stage.
        num_classes: Number of outputs.
        in_channels: Channels of the images, which have any size from 4 x 4 on.

    Raises:
        ConfigError: For a depth that is not 6 n + 2.

    Source: He et al. 2016, "Deep residual learning", section 4.2.

    Example:
        >>> import torch
        >>> CifarResNet(depth=8, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depth: int = 20, width: int = 16, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, width=width, depth=depth)
        blocks = _check_depth(depth, 2, "8, 14, 20, 32, 56, 110")
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.layer1 = _make_stage(BasicBlock, width, width, blocks, stride=1)
        self.layer2 = _make_stage(BasicBlock, width, 2 * width, blocks, stride=2)
        self.layer3 = _make_stage(BasicBlock, 2 * width, 4 * width, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, in_channels, H, W)."""
        maps = self.bn(self.conv(images)).relu()
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.fc(self.pool(maps).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, outputs, H / stride, W / stride) of maps (N, inputs, H, W)."""
        residual = self.bn2(self.conv2(self.bn1(self.conv1(maps)).relu()))
        out: Tensor = (residual + self.shortcut(maps)).relu()
        return out


class WideResNet(nn.Module):
    """A pre-activation ResNet with few, wide layers: three stages of n blocks, depth 6 n + 4.

    Stages have `width` times 16, 32 and 64 channels behind a convolution of 16; the second and
    third halve the image. WRN-28-10 has 36,479,194 parameters for 10 classes, WRN-22-2 1,079,642.
    He initialization.

    Args:
        depth: 10, 16, 22, 28, 40, ...: 6 n + 4.
        width: The widening factor k.
        num_classes: Number of outputs.
        in_channels: Channels of the images, which have any size from 4 x 4 on.

    Raises:
        ConfigError: For a depth that is not 6 n + 4.

    Source: Zagoruyko and Komodakis 2016, arXiv 1605.07146, table 1.

    Example:
        >>> import torch
        >>> WideResNet(depth=10, width=1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depth: int = 28, width: int = 10, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, width=width, depth=depth)
        blocks = _check_depth(depth, 4, "10, 16, 22, 28, 40")
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer1 = _make_stage(WideBlock, 16, 16 * width, blocks, stride=1)
        self.layer2 = _make_stage(WideBlock, 16 * width, 32 * width, blocks, stride=2)
        self.layer3 = _make_stage(WideBlock, 32 * width, 64 * width, blocks, stride=2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, in_channels, H, W)."""
        maps = self.layer3(self.layer2(self.layer1(self.conv(images))))
        logits: Tensor = self.fc(self.pool(self.bn(maps).relu()).flatten(1))
        return logits


class WideBlock(nn.Module):
    """Norm, ReLU and a 3 x 3 convolution, twice, and a shortcut.

    Where the shape changes the shortcut is a 1 x 1 convolution of the activated maps, else the
    identity.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps (N, outputs, H / stride, W / stride) of maps (N, inputs, H, W)."""
        active = self.bn1(maps).relu()
        residual = self.conv2(self.bn2(self.conv1(active)).relu())
        shortcut: Tensor = maps if self.shortcut is None else self.shortcut(active)
        out: Tensor = residual + shortcut
        return out


def _make_stage(
    block: type[BasicBlock | WideBlock], inputs: int, outputs: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(inputs, outputs, stride)
    return nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(blocks - 1)))


def _check_depth(depth: int, rest: int, examples: str) -> int:
    """Return the blocks per stage of a network of depth `6 n + rest`."""
    if depth < 6 + rest or depth % 6 != rest:
        near = max(6 + rest, round((depth - rest) / 6) * 6 + rest)
        raise ConfigError(f"depth must be 6 n + {rest} ({examples}), got {depth}: write {near}")
    return (depth - rest) // 6
