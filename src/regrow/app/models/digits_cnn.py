# SPDX-License-Identifier: MIT
"""A small CNN for digits."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.app.models.init import check_counts, conv_bn_relu, he_normal


class DigitsCNN(nn.Module):
    """Three 3 x 3 convolutions with batch norm, global average pooling, one linear layer.

    With the defaults: 14,288 weights of convolutions and the linear layer, 14,458 parameters in
    all. Images are halved once, after the second convolution. He initialization.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images, which have any size from 2 x 2 on.
        width: Channels of the first convolution; the others have twice as many.

    Example:
        >>> import torch
        >>> DigitsCNN()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, width=width)
        self.features = nn.Sequential(
            *conv_bn_relu(in_channels, width),
            *conv_bn_relu(width, 2 * width),
            nn.MaxPool2d(2),
            *conv_bn_relu(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(2 * width, num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, in_channels, H, W)."""
        logits: Tensor = self.fc(self.features(images))
        return logits
