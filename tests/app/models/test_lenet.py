# SPDX-License-Identifier: MIT
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from regrow.app.models.lenet import LeNet5, LeNet300100
from regrow.utils.errors import ConfigError


def sizes(network: nn.Module) -> list[int]:
    return [
        module.weight.numel()
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]


def test_parameter_counts_by_formula() -> None:
    assert sizes(LeNet300100()) == [784 * 300, 300 * 100, 100 * 10]
    assert sum(sizes(LeNet300100())) == 266200
    assert sizes(LeNet5()) == [25 * 20, 25 * 20 * 50, 800 * 500, 500 * 10]
    assert sum(sizes(LeNet5())) == 430500


def test_lenet300100_has_xavier_normal_weights() -> None:
    torch.manual_seed(0)
    network = LeNet300100()
    for layer in (network.fc1, network.fc2, network.fc3):
        std = math.sqrt(2 / (layer.in_features + layer.out_features))
        assert layer.weight.std().item() == pytest.approx(std, rel=0.06)
        assert layer.weight.abs().max() > 2 * std  # no uniform law of this width reaches there
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (LeNet300100, (3, 8, 8)),
        (LeNet300100, (1, 1, 5)),
        (LeNet5, (1, 16, 16)),
        (LeNet5, (3, 32, 20)),
    ],
)
def test_other_image_sizes_are_accepted(network: type[nn.Module], shape: tuple[int, ...]) -> None:
    assert network(num_classes=4, input_shape=list(shape))(torch.zeros(2, *shape)).shape == (2, 4)


def test_forward_equals_the_formula() -> None:
    network = LeNet300100()
    x = torch.randn(5, 1, 28, 28)
    hidden = x.reshape(5, 784)
    for layer in (network.fc1, network.fc2):
        hidden = torch.clamp(hidden @ layer.weight.T + layer.bias, min=0)
    torch.testing.assert_close(network(x), hidden @ network.fc3.weight.T + network.fc3.bias)


@pytest.mark.parametrize("shape", [(1, 15, 28), (1, 8, 8)])
def test_lenet5_raises_for_small_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least 16 x 16"):
        LeNet5(input_shape=shape)


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28, 1)])
def test_image_shape_must_have_three_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"write \[1, 28, 28\]"):
        LeNet300100(input_shape=shape)
