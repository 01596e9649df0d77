# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
from torch import nn

from regrow.app.models.cifar_vgg import VGG
from regrow.utils.errors import ConfigError

CHANNELS = {
    11: [1, 2, 4, 4, 8, 8, 8, 8],
    13: [1, 1, 2, 2, 4, 4, 8, 8, 8, 8],
    16: [1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8],
    19: [1, 1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8],
}


@pytest.mark.parametrize("depth", CHANNELS)
@pytest.mark.parametrize("width", [3, 8])
def test_parameter_counts_by_formula(depth: int, width: int) -> None:
    outputs = [width * times for times in CHANNELS[depth]]
    inputs = [1, *outputs[:-1]]
    convolutions = sum(9 * i * o for i, o in zip(inputs, outputs, strict=True))
    network = VGG(depth, width, num_classes=7, in_channels=1)
    assert convolutions == sum(
        module.weight.numel() for module in network.modules() if isinstance(module, nn.Conv2d)
    )
    total = convolutions + 2 * sum(outputs) + 8 * width * 7 + 7
    assert sum(parameter.numel() for parameter in network.parameters()) == total


def test_vgg16_has_its_known_size() -> None:
    network = VGG()
    convolutions = [m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert sum(convolutions) == 14710464


@pytest.mark.parametrize("size", [16, 28, 32])
def test_several_image_sizes_are_supported(size: int) -> None:
    assert VGG(11, 2, num_classes=4, in_channels=1)(torch.zeros(2, 1, size, size)).shape == (2, 4)


@pytest.mark.parametrize(("depth", "near"), [(18, 19), (12, 11), (50, 19)])
def test_depth_must_be_one_of_four(depth: int, near: int) -> None:
    with pytest.raises(ConfigError, match=f"11, 13, 16 or 19, got {depth}: write {near}"):
        VGG(depth)
