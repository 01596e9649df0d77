# SPDX-License-Identifier: MIT
"""CNN for digits."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.app.models.init import he_normal
from regrow.utils.errors import check_count


class DigitsCNN(nn.Module):
    """Three 3 x 3 convolutions with batch norm, global average pooling, one linear layer.

    With the defaults: 14,288 weights of convolutions and the linear layer, 14,458 parameters in
    all. Images are halved once, after the second convolution. He initialisation.

    Args:
        num_classes: Outputs.
        in_channels: Of the images, which may have any size from 2 x 2 on.
        width: Channels of the first convolution; the others have twice as many.

    Example:
        >>> import torch
        >>> DigitsCNN()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        check_count("width", width)
        self.features = nn.Sequential(
            *_block(in_channels, width),
            *_block(width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(2 * width, num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        logits: Tensor = self.fc(self.features(images))
        return logits


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
