# SPDX-License-Identifier: MIT
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from regrow.app.models.resnet import BasicBlock, Bottleneck, ImageNetResNet
from regrow.utils.errors import ConfigError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def count(depth: int, classes: int) -> int:
    """Parameters by hand, from the paper's table 1."""
    weights, norms, inputs = 49 * 3 * 64, 64, 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        for block in range(blocks):
            if depth < 50:
                outputs, within = width, 9 * inputs * width + 9 * width * width
                norms += 2 * width
            else:
                outputs = 4 * width
                within = inputs * width + 9 * width * width + width * outputs
                norms += 2 * width + outputs
            weights += within
            if block == 0 and inputs != outputs:
                weights += inputs * outputs
                norms += outputs
            inputs = outputs
    return weights + 2 * norms + inputs * classes + classes


@pytest.mark.parametrize("depth", BLOCKS)
def test_counts(depth: int) -> None:
    with torch.device("meta"):
        network = ImageNetResNet(depth, num_classes=7)
    assert sum(p.numel() for p in network.parameters()) == count(depth, 7)
    main = [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "downsample" not in name
    ]
    assert len(main) == depth


def test_published_sizes() -> None:
    sizes = {18: 11689512, 34: 21797672, 50: 25557032, 101: 44549160}
    assert {depth: count(depth, 1000) for depth in BLOCKS} == sizes


def test_resnet50_computes_four_billion_products() -> None:
    """4,089,184,256 at 224 x 224: the stride lies in the 3 x 3 convolutions."""
    with torch.device("meta"):
        network, x = ImageNetResNet(50).eval(), torch.zeros(1, 3, 224, 224)
        macs = []

        def add(module: nn.Conv2d | nn.Linear, _: object, out: torch.Tensor) -> None:
            macs.append(module.weight.numel() * (out[0, 0].numel() if out.dim() == 4 else 1))

        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(add)
        network(x)
    assert sum(macs) == 4089184256


def test_stages_halve_the_image() -> None:
    network = ImageNetResNet(18)
    maps = network.maxpool(network.conv1(torch.zeros(1, 3, 64, 64)))
    shapes = [tuple(maps.shape[1:])]
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        maps = stage(maps)
        shapes.append(tuple(maps.shape[1:]))
    assert shapes == [(64, 16, 16), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


def test_names_are_torchvisions() -> None:
    names = ImageNetResNet(50).state_dict()
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv3.weight",
        "layer1.0.downsample.0.weight",
        "layer4.2.bn3.bias",
        "fc.bias",
    } <= {*names}
    assert len(names) == 320


@pytest.mark.parametrize("block", [BasicBlock(4, 4, stride=1), Bottleneck(8, 4, 8, stride=1)])
def test_a_block_that_starts_at_zero_is_the_identity(block: BasicBlock | Bottleneck) -> None:
    nn.init.zeros_((block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight)
    x = torch.randn(2, block.conv1.in_channels, 8, 8)
    torch.testing.assert_close(block(x), x.clamp(min=0))


@pytest.mark.parametrize("depth", [18, 50])
def test_zero_residual_is_the_last_norm_of_each_block(depth: int) -> None:
    network = ImageNetResNet(depth, num_classes=2, zero_residual=True)
    last = "bn2" if depth < 50 else "bn3"
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool(module.weight.any()) != name.endswith(last), name


def test_initialisation() -> None:
    torch.manual_seed(0)
    network = ImageNetResNet(18)
    std = network.layer4[1].conv1.weight.std().item()
    assert std == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.02)
    assert network.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not network.fc.bias.any()


@pytest.mark.parametrize(("depth", "near"), [(20, 18), (49, 50), (152, 101)])
def test_depth_is_one_of_four(depth: int, near: int) -> None:
    with pytest.raises(ConfigError, match=f"18, 34, 50 or 101, got {depth}: write {near}"):
        ImageNetResNet(depth)
