# SPDX-License-Identifier: MIT
"""LeNet-300-100 and LeNet-5."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from regrow.app.models.init import he_normal, xavier_normal
from regrow.utils.errors import ConfigError, check_count


class LeNet300100(nn.Module):
    """A perceptron with hidden layers of 300 and 100; 266,200 weights for 28 x 28 gray images.

    Glorot initialization (Gaussian), as in the lottery ticket experiments.

    Args:
        num_classes: Number of outputs.
        input_shape: (channels, height, width) of one image.

    Source: LeCun et al. 1998; Frankle and Carbin 2019, arXiv 1803.03635.

    Example:
        >>> import torch
        >>> LeNet300100()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, input_shape: Sequence[int] = (1, 28, 28)) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        self.fc1 = nn.Linear(math.prod(_check_input_shape(input_shape)), 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)
        xavier_normal(self.fc1, self.fc2, self.fc3)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, C, H, W)."""
        hidden = self.fc2(self.fc1(images.flatten(1)).relu()).relu()
        logits: Tensor = self.fc3(hidden)
        return logits


class LeNet5(nn.Module):
    """Caffe's LeNet: 5 x 5 convolutions of 20 and 50, linear layers of 500 and `num_classes`.

    430,500 weights for 28 x 28 gray images. ReLU also follows the convolutions (in Caffe only the
    first linear layer). He initialization.

    Args:
        num_classes: Number of outputs.
        input_shape: (channels, height, width) of one image, from 16 x 16 on.

    Raises:
        ConfigError: For images too small for two convolutions and poolings.

    Source: Jia et al. 2014, arXiv 1408.5093.

    Example:
        >>> import torch
        >>> LeNet5()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, input_shape: Sequence[int] = (1, 28, 28)) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        channels, height, width = _check_input_shape(input_shape)
        rows, columns = (((size - 4) // 2 - 4) // 2 for size in (height, width))
        if rows < 1 or columns < 1:
            raise ConfigError(
                f"input_shape must be at least 16 x 16 for LeNet5, got {height} x {width}: "
                "write model=lenet_300_100 or model=digits_cnn for smaller images"
            )
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * rows * columns, 500)
        self.fc2 = nn.Linear(500, num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, C, H, W)."""
        maps = self.pool(self.conv1(images).relu())
        maps = self.pool(self.conv2(maps).relu())
        logits: Tensor = self.fc2(self.fc1(maps.flatten(1)).relu())
        return logits


def _check_input_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    sizes = tuple(check_count("input_shape", size) for size in shape)
    if len(sizes) != 3:
        raise ConfigError(
            f"input_shape must be (channels, height, width), got {list(shape)}: write [1, 28, 28]"
        )
    return sizes
