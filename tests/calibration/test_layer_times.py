# SPDX-License-Identifier: MIT
"""Sparse products compute what the layer computes; times between the measured ones."""

import pytest
import torch
from torch import nn

import regrow
from regrow.calibration.layer_rows import LayerRows
from regrow.calibration.layer_times import LayerTimes, sparse_layer
from regrow.utils.errors import ConfigError

LAYERS = [
    (nn.Linear(5, 4), (3, 5)),
    (nn.Linear(5, 4, bias=False), (2, 3, 5)),
    (nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), (2, 4, 7, 7)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
]


@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=lambda one: type(one).__name__)
def test_sparse_products_are_the_outputs_of_the_layer(module, shape):
    x = torch.randn(shape)
    mask = torch.rand_like(module.weight) < 0.4
    with torch.no_grad():
        run = sparse_layer(LayerRows("weight", module), mask, x)
        module.weight.mul_(mask)
        assert torch.allclose(run(), by_groups(module, module(x)), atol=1e-5)


def by_groups(module, outputs):
    """Outputs of a layer as `(groups, positions, out / groups)`."""
    if isinstance(module, nn.Linear):
        return outputs.reshape(1, -1, outputs.shape[-1])
    batch, channels = outputs.shape[:2]
    parts = outputs.reshape(batch, module.groups, channels // module.groups, -1)
    return parts.permute(1, 0, 3, 2).reshape(module.groups, -1, parts.shape[2])


def test_times_between_measured_sparsities_and_the_faster_of_both_kernels():
    times = LayerTimes((0.5, 0.9), {"fc": 2.0}, {"fc": (3.0, 1.0)})
    assert times("fc", 0.0) == times("fc", 0.5) == 2.0  # dense is faster
    assert times("fc", 0.8) == pytest.approx(1.5)
    assert times("fc", 0.9) == times("fc", 0.99) == 1.0


def test_measured_milliseconds_are_a_cost_of_free_sparsity():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    data = list(torch.randn(1024, 16).split(128))
    result = regrow.free_sparsity(
        net, data[:2], 0.2, of="latency", validation=data[2:], resolution=0.1
    )
    assert result.of == "latency"
    assert 0 <= result.removed < 1


@pytest.mark.parametrize("layer", [nn.LSTM(8, 8), nn.MultiheadAttention(8, 2)])
def test_parts_of_layers_have_no_milliseconds_of_their_own(layer):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.layer(*[x] * (1 if isinstance(self.layer, nn.LSTM) else 3))[0])

    data = [torch.randn(8, 5, 8) for _ in range(4)]
    with pytest.raises(ConfigError, match=r"layer\.\w+ is a part of .*exclude=.*of='params'"):
        regrow.free_sparsity(Model(), data[:2], 0.2, of="latency", validation=data[2:], samples=16)
