# SPDX-License-Identifier: MIT
"""MobileNetV2, with the parameter names of torchvision."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.app.models.initialise import he_normal
from regrow.app.models.inverted import InvertedResidual, conv_norm
from regrow.errors import ConfigError, check_count

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
