# SPDX-License-Identifier: MIT
"""Groups whose zeroed channels still affect the output say so; their members are correct.

The reference is that permuting the channels does not change the outputs.
"""

import pytest
import torch
from cut_oracle import Net, check
from torch import nn
from torch.nn import functional as F

ROW = torch.zeros(2, 6, dtype=torch.float64)
IMAGE = torch.zeros(2, 3, 8, 8, dtype=torch.float64)


def net(run, **layers):
    own = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1), "c": nn.Conv2d(8, 2, 1)}
    return Net(run, **{name: layer for name, layer in (own | layers).items() if layer is not None})


def row(layer):
    return nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3))


def image(layer):
    return nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(8, 3, 1))


def standardised(m, x):
    """A mean over inputs and kernel is taken from each filter, as in weight standardisation."""
    weight = m.d.weight - m.d.weight.mean((1, 2, 3), keepdim=True)
    return m.c(F.conv2d(m.a(x), weight))


def normed(m, x):
    """The same by a batch norm over a view of the weight, as timm has it."""
    weight = m.d.weight.reshape(1, len(m.d.weight), -1)
    weight = F.batch_norm(weight, None, None, training=True).reshape_as(m.d.weight)
    return m.c(F.conv2d(m.a(x), weight))


ONE = {"a": 8}
NETWORKS = [
    ("layer norm", row(nn.LayerNorm(8)), ROW, {"0": 8}, {"0"}),
    ("layer norm, no scale", row(nn.LayerNorm(8, elementwise_affine=False)), ROW, {"0": 8}, {"0"}),
    ("layer norm, image", image(nn.LayerNorm([8, 8, 8])), IMAGE, {"0": 8}, {"0"}),
    ("rms norm", row(nn.RMSNorm(8)), ROW, {"0": 8}, {"0"}),
    ("group norm", image(nn.GroupNorm(2, 8)), IMAGE, {"0": 4}, {"0"}),
    ("one group", image(nn.GroupNorm(1, 8)), IMAGE, {"0": 8}, {"0"}),
    ("softmax", row(nn.Softmax(1)), ROW, {"0": 8}, {"0"}),
    ("log softmax", row(nn.LogSoftmax(-1)), ROW, {"0": 8}, {"0"}),
    ("softmax of images", image(nn.Softmax2d()), IMAGE, {"0": 8}, {"0"}),
    (
        "mean",
        net(lambda m, x: m.c(m.a(x).mean(1, keepdim=True)), b=None, c=nn.Conv2d(1, 2, 1)),
        IMAGE,
        ONE,
        {"a"},
    ),
    (
        "largest as a gate",
        net(lambda m, x: m.c(m.a(x).amax(1, keepdim=True).sigmoid() * m.b(x))),
        IMAGE,
        {"a": 8, "b": 8},
        {"a"},
    ),
    (
        "deviation",
        net(lambda m, x: m.c(m.a(x) / m.a(x).std(1, keepdim=True)), b=None),
        IMAGE,
        ONE,
        {"a"},
    ),
    ("unit length", net(lambda m, x: m.c(F.normalize(m.a(x))), b=None), IMAGE, ONE, {"a"}),
    ("weights", net(standardised, b=None, d=nn.Conv2d(8, 8, 3)), IMAGE, {"a": 8, "d": 8}, {"a"}),
    ("normed weights", net(normed, b=None, d=nn.Conv2d(8, 8, 3)), IMAGE, {"a": 8, "d": 8}, {"a"}),
    (
        "the output is a mean",
        net(lambda m, x: m.c(m.a(x)).mean((1, 2, 3)), b=None),
        IMAGE,
        {"a": 8, "c": 2},
        {"c"},
    ),
]


@pytest.mark.parametrize(
    ("model", "x", "sizes", "approximate"),
    [case[1:] for case in NETWORKS],
    ids=[case[0] for case in NETWORKS],
)
def test_groups_whose_zeros_affect_the_output_are_approximate(model, x, sizes, approximate):
    check(model, x, sizes, approximate)
