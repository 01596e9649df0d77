# SPDX-License-Identifier: MIT
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from regrow.app.models.cifar_resnet import BasicBlock, CifarResNet
from regrow.utils.errors import ConfigError


def count(depth: int, w: int, classes: int, channels: int) -> tuple[int, int]:
    """Weights and batch-norm parameters, by hand."""
    n = (depth - 2) // 6
    weights = 9 * channels * w + 9 * w * w * 2 * n
    norms = w * (2 * n + 1)
    for inputs, outputs in ((w, 2 * w), (2 * w, 4 * w)):
        weights += 9 * inputs * outputs + 9 * outputs * outputs * (2 * n - 1) + inputs * outputs
        norms += outputs * (2 * n + 1)
    return weights + 4 * w * classes, 2 * norms


@pytest.mark.parametrize(("depth", "width"), [(8, 8), (20, 16), (20, 5), (56, 16)])
def test_parameter_counts_by_formula(depth: int, width: int) -> None:
    network = CifarResNet(depth, width, num_classes=7, in_channels=1)
    weights, norms = count(depth, width, 7, 1)
    assert weights == sum(
        module.weight.numel()
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    )
    assert sum(p.numel() for p in network.parameters()) == weights + norms + 7
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth + 2  # the two shortcuts are not counted in the name


def test_resnet20_has_its_known_size() -> None:
    assert count(20, 16, 10, 3) == (270896, 1568)
    assert sum(p.numel() for p in CifarResNet().parameters()) == 272474


def test_stages_halve_the_image() -> None:
    network = CifarResNet(8, 4)
    maps = network.layer1(torch.zeros(1, 4, 32, 32))
    shapes = [tuple(maps.shape[1:])]
    for stage in (network.layer2, network.layer3):
        maps = stage(maps)
        shapes.append(tuple(maps.shape[1:]))
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8)]


def test_block_adds_its_shortcut() -> None:
    block = BasicBlock(4, 4, stride=1).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x.clamp(min=0))


def test_weights_have_he_initialisation() -> None:
    torch.manual_seed(0)
    conv = CifarResNet().layer3[1].conv1
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)


@pytest.mark.parametrize("depth", [2, 7, 18, 21])
def test_depth_must_be_6n_plus_2(depth: int) -> None:
    with pytest.raises(ConfigError, match=rf"depth must be 6 n \+ 2 .* got {depth}: write (8|20)"):
        CifarResNet(depth)


@pytest.mark.parametrize("wrong", [{"depth": "20"}, {"width": 0}, {"in_channels": -1}])
def test_sizes_must_be_counts(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"must be a whole number|depth is the text"):
        CifarResNet(**wrong)
