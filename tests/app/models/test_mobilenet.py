# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
from torch import nn

from regrow.app.models.mobilenet import InvertedResidual, MobileNetV2
from regrow.utils.errors import ConfigError

# the paper's table 2: expansion, channels, blocks, stride
TABLE = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def count(classes: int) -> int:
    """Parameters by hand: each convolution has a norm of two for each of its channels."""
    total, inputs = 27 * 32 + 2 * 32, 32
    for expansion, outputs, blocks, _ in TABLE:
        for _ in range(blocks):
            within = inputs * expansion
            total += (inputs * within + 2 * within) if expansion != 1 else 0
            total += 9 * within + 2 * within + within * outputs + 2 * outputs
            inputs = outputs
    return total + inputs * 1280 + 2 * 1280 + 1280 * classes + classes


def test_published_sizes() -> None:
    assert count(1000) == 3504872
    assert sum(p.numel() for p in MobileNetV2().parameters()) == 3504872
    assert sum(p.numel() for p in MobileNetV2(10, small=True).parameters()) == count(10) == 2236682


def sizes(network: MobileNetV2, pixels: int) -> list[int]:
    maps, found = torch.zeros(1, 3, pixels, pixels), []
    for layer in network.eval().features:
        maps = layer(maps)
        found.append(maps.shape[-1])
    return found


def test_photographs_are_halved_five_times() -> None:
    found = sizes(MobileNetV2(2), 224)
    assert found == [112, 112, *[56] * 2, *[28] * 3, *[14] * 7, *[7] * 5]


def test_small_images_are_halved_three_times() -> None:
    found = sizes(MobileNetV2(2, small=True), 32)
    assert found == [32, 32, *[32] * 2, *[16] * 3, *[8] * 7, *[4] * 5]


def test_only_blocks_that_keep_the_shape_add_what_came_in() -> None:
    adds = [m.adds for m in MobileNetV2(2).features if isinstance(m, InvertedResidual)]
    assert adds == [block > 0 for _, _, blocks, _ in TABLE for block in range(blocks)]
    block = InvertedResidual(4, 4, expansion=2).eval()
    nn.init.zeros_(block.conv[-1].weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x)


def test_names_are_torchvisions() -> None:
    names = {*MobileNetV2(2).state_dict()}
    assert {
        "features.0.0.weight",
        "features.1.conv.0.1.bias",
        "features.1.conv.1.weight",
        "features.2.conv.1.0.weight",
        "features.17.conv.3.running_var",
        "features.18.1.weight",
        "classifier.1.bias",
    } <= names
    assert len(names) == 314


def test_initialisation_and_dropout() -> None:
    torch.manual_seed(0)
    network = MobileNetV2(dropout=0.5)
    assert network.classifier[0].p == 0.5
    assert network.classifier[1].weight.std().item() == pytest.approx(0.01, rel=0.02)
    with pytest.raises(ConfigError, match="dropout must be in"):
        MobileNetV2(dropout=1)
