# SPDX-License-Identifier: MIT
"""VGG with batch norm for CIFAR."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.app.models.init import check_counts, conv_bn_relu, he_normal
from regrow.utils.errors import ConfigError, check_count

# convolutions in each of the five stages
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (1, 2, 4, 8, 8)


class VGG(nn.Module):
    """Stages of 3 x 3 convolutions with batch norm, and one linear layer.

    Stages have `width`, 2, 4, 8 and 8 times `width` channels, with max pooling between them and
    global average pooling at the end (no hidden linear layers, as usual for small images). VGG-16
    has 14,710,464 weights of convolutions. He initialization.

    Args:
        depth: 11, 13, 16 or 19, counted as in the paper.
        width: Channels of the first stage.
        num_classes: Number of outputs.
        in_channels: Channels of the images, which have any size from 16 x 16 on.

    Raises:
        ConfigError: For another depth.

    Source: Simonyan and Zisserman 2015, arXiv 1409.1556, table 1.

    Example:
        >>> import torch
        >>> VGG(depth=11, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depth: int = 16, width: int = 64, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, width=width)
        inputs = in_channels
        if depth not in _STAGES:
            near = min(_STAGES, key=lambda known: abs(known - check_count("depth", depth)))
            raise ConfigError(f"depth must be 11, 13, 16 or 19, got {depth}: write {near}")
        layers: list[nn.Module] = []
        for times, convolutions in zip(_WIDTHS, _STAGES[depth], strict=True):
            if layers:
                layers.append(nn.MaxPool2d(2))
            for _ in range(convolutions):
                layers += conv_bn_relu(inputs, times * width)
                inputs = times * width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, in_channels, H, W)."""
        logits: Tensor = self.fc(self.pool(self.features(images)).flatten(1))
        return logits
