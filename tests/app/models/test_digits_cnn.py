# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
from torch import nn

from regrow.app.models.digits_cnn import DigitsCNN
from regrow.utils.errors import ConfigError


def test_parameter_counts_by_formula() -> None:
    network = DigitsCNN()
    weights = 1 * 16 * 9 + 16 * 32 * 9 + 32 * 32 * 9 + 32 * 10
    assert weights == 14288
    assert weights == sum(
        module.weight.numel()
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    )
    total = weights + 2 * (16 + 32 + 32) + 10
    assert sum(parameter.numel() for parameter in network.parameters()) == total == 14458


@pytest.mark.parametrize("size", [2, 8, 28])
def test_any_image_size_is_accepted(size: int) -> None:
    out = DigitsCNN(num_classes=7, in_channels=3, width=4)(torch.zeros(2, 3, size, size))
    assert out.shape == (2, 7)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ConfigError, match="width must be"):
        DigitsCNN(width=0)
    with pytest.raises(ConfigError, match="num_classes must be"):
        DigitsCNN(num_classes=2.5)  # type: ignore[arg-type]
