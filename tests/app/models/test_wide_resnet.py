# SPDX-License-Identifier: MIT
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from regrow.app.models.cifar_resnet import WideBlock, WideResNet
from regrow.utils.errors import ConfigError


def count(depth: int, k: int, classes: int, channels: int = 3) -> int:
    """Parameters by hand: convolutions, two for each channel of a norm, the linear layer."""
    n = (depth - 4) // 6
    total, inputs = 9 * channels * 16, 16
    for outputs in (16 * k, 32 * k, 64 * k):
        total += 9 * inputs * outputs + 9 * outputs * outputs * (2 * n - 1)
        total += inputs * outputs if inputs != outputs else 0
        total += 2 * (inputs + outputs * (2 * n - 1))
        inputs = outputs
    return total + 2 * inputs + inputs * classes + classes


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 3), (22, 2), (40, 1)])
def test_parameter_counts_by_formula(depth: int, width: int) -> None:
    network = WideResNet(depth, width, num_classes=7, in_channels=1)
    assert sum(p.numel() for p in network.parameters()) == count(depth, width, 7, 1)
    shortcuts = sum(m.kernel_size == (1, 1) for m in network.modules() if isinstance(m, nn.Conv2d))
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    # the name counts the shortcuts, of which a width of 1 has one less
    assert shortcuts == 3 - (width == 1)
    assert len(layers) - shortcuts == depth - 2


@pytest.mark.parametrize(
    ("depth", "width", "millions"), [(28, 10, 36.5), (40, 4, 8.9), (16, 8, 11.0), (22, 2, 1.08)]
)
def test_parameter_counts_equal_the_published_ones(depth: int, width: int, millions: float) -> None:
    """The paper's tables 4 and 5, in millions; WRN-22-2 is of the sparse training papers."""
    assert count(depth, width, 10) == pytest.approx(millions * 1e6, rel=0.01)


def test_models_of_the_recipes_have_their_known_sizes() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in WideResNet(28, 10).parameters()) == 36479194
        assert sum(p.numel() for p in WideResNet(22, 2).parameters()) == 1079642
    assert (count(28, 10, 10), count(22, 2, 10)) == (36479194, 1079642)


def test_stages_halve_the_image() -> None:
    network = WideResNet(10, 1)
    maps, shapes = torch.zeros(1, 16, 32, 32), []
    for stage in (network.layer1, network.layer2, network.layer3):
        maps = stage(maps)
        shapes.append(tuple(maps.shape[1:]))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_norm_and_relu_come_before_the_convolutions() -> None:
    """The shortcut takes the raw input if the shape is unchanged, else the activated input."""
    x = torch.randn(2, 4, 8, 8)
    same, wider = WideBlock(4, 4, stride=1).eval(), WideBlock(4, 8, stride=1).eval()
    for block in (same, wider):
        nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(same(x), x)
    assert wider.shortcut is not None
    active = x.div((1 + 1e-5) ** 0.5).clamp(min=0)
    weight = wider.shortcut.weight.detach().flatten(1)
    torch.testing.assert_close(wider(x), torch.einsum("oi,nihw->nohw", weight, active))


def test_weights_have_he_initialisation() -> None:
    torch.manual_seed(0)
    conv = WideResNet(10, 4).layer3[0].conv2
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)


@pytest.mark.parametrize("depth", [4, 9, 20, 110])
def test_depth_must_be_6n_plus_4(depth: int) -> None:
    with pytest.raises(ConfigError, match=rf"depth must be 6 n \+ 4 .* got {depth}: write \d+"):
        WideResNet(depth)


@pytest.mark.parametrize("wrong", [{"depth": "28"}, {"width": 0}, {"num_classes": -1}])
def test_sizes_must_be_counts(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"must be a whole number|depth is the text"):
        WideResNet(**wrong)
