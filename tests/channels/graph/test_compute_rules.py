# SPDX-License-Identifier: MIT
"""Layers between a first and a last one are cut together and compute what zeros did.

Each row says how many channels each group has, by hand.
"""

import pytest
import torch
from cut_oracle import Net, check
from torch import nn

ROW = torch.zeros(2, 6, dtype=torch.float64)
ROWS = torch.zeros(2, 5, 6, dtype=torch.float64)
SEQUENCE = torch.zeros(2, 3, 12, dtype=torch.float64)
IMAGE = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
VIDEO = torch.zeros(2, 3, 4, 6, 6, dtype=torch.float64)


def image(*layers, features=8):
    """A convolution of eight channels, layers, pooling, a classifier."""
    first, last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(features, 3)
    return nn.Sequential(first, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def row(*layers):
    return nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 3))


def chain(*layers):
    return nn.Sequential(*layers)


NETWORKS = [
    ("linear", row(nn.ReLU(), nn.Linear(8, 8, bias=False), nn.Sigmoid()), ROW, {"0": 8, "2": 8}),
    ("linear of rows", row(nn.GELU()), ROWS, {"0": 8}),
    ("prelu of rows", row(nn.PReLU(8)), ROW, {"0": 8}),
    ("batch norm of rows", row(nn.BatchNorm1d(8)), ROW, {"0": 8}),
    (
        "conv1d",
        chain(
            nn.Conv1d(3, 8, 3, padding="same", dilation=2),
            nn.BatchNorm1d(8),
            nn.Conv1d(8, 6, 3, dilation=2),
            nn.Flatten(),
            nn.Linear(48, 2),
        ),
        SEQUENCE,
        {"0": 8, "2": 6},
    ),
    (
        "conv3d",
        chain(
            nn.Conv3d(3, 6, 3, padding=1),
            nn.BatchNorm3d(6),
            nn.Conv3d(6, 4, (1, 3, 3)),
            nn.MaxPool3d((1, 2, 2)),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
        VIDEO,
        {"0": 6, "2": 4},
    ),
    ("same", image(nn.Conv2d(8, 8, 3, padding="same", dilation=2)), IMAGE, {"0": 8, "1": 8}),
    ("valid", image(nn.Conv2d(8, 8, 3, 2, padding="valid")), IMAGE, {"0": 8, "1": 8}),
    (
        "ring",
        image(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
        IMAGE,
        {"0": 8, "1": 8},
    ),
    ("one in", chain(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 1)), IMAGE, {"1": 8}),
    (
        "transposed 1d",
        chain(nn.ConvTranspose1d(3, 8, 3), nn.ReLU(), nn.ConvTranspose1d(8, 2, 3)),
        SEQUENCE,
        {"0": 8},
    ),
    ("transposed 2d", image(nn.ConvTranspose2d(8, 8, 2, 2)), IMAGE, {"0": 8, "1": 8}),
    ("transposed 3d", chain(nn.ConvTranspose3d(3, 8, 2), nn.Conv3d(8, 2, 1)), VIDEO, {"0": 8}),
    # few large groups lose the same channel each; of many small ones whole groups go
    ("2 groups", image(nn.Conv2d(8, 12, 3, groups=2), features=12), IMAGE, {"0": 4, "1": 6}),
    ("4 groups", image(nn.Conv2d(8, 12, 3, groups=4), features=12), IMAGE, {"0": 4}),
    ("8 groups", image(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)), IMAGE, {"0": 8}),
    ("multiplier", image(nn.Conv2d(8, 24, 3, groups=8), features=24), IMAGE, {"0": 8}),
    (
        "groups after groups",
        image(nn.Conv2d(8, 8, 1, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2)),
        IMAGE,
        {"0": 4, "1": 4, "3": 4},
    ),
    (
        "8 groups after 2",
        image(nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 3, groups=8)),
        IMAGE,
        {"0": 4, "1": 4},
    ),
    (
        "transposed, 2 groups",
        image(nn.ConvTranspose2d(8, 12, 2, 2, groups=2), features=12),
        IMAGE,
        {"0": 4, "1": 6},
    ),
    ("transposed, 4 groups", image(nn.ConvTranspose2d(8, 8, 2, 2, groups=4)), IMAGE, {"0": 4}),
    (
        "transposed, multiplier",
        image(nn.ConvTranspose2d(8, 16, 2, 2, groups=8), features=16),
        IMAGE,
        {"0": 8},
    ),
    ("batch norm", image(nn.BatchNorm2d(8), nn.Sigmoid()), IMAGE, {"0": 8}),
    ("batch norm, no scale", image(nn.BatchNorm2d(8, affine=False)), IMAGE, {"0": 8}),
    ("batch norm, live", image(nn.BatchNorm2d(8, track_running_stats=False)), IMAGE, {"0": 8}),
    ("instance norm", image(nn.InstanceNorm2d(8, affine=True)), IMAGE, {"0": 8}),
    ("instance norm, kept", image(nn.InstanceNorm2d(8, track_running_stats=True)), IMAGE, {"0": 8}),
    ("norm of single channels", image(nn.GroupNorm(8, 8)), IMAGE, {"0": 8}),
    ("norm of single, no scale", image(nn.GroupNorm(8, 8, affine=False)), IMAGE, {"0": 8}),
    ("prelu", image(nn.PReLU(8), nn.PReLU()), IMAGE, {"0": 8}),
    ("glu", row(nn.Linear(8, 16), nn.GLU()), ROW, {"0": 8, "1": 8}),
    ("pooling", image(nn.MaxPool2d(2), nn.AvgPool2d(2)), IMAGE, {"0": 8}),
    ("padded pooling", image(nn.MaxPool2d(3, 1, 1), nn.AdaptiveMaxPool2d(3)), IMAGE, {"0": 8}),
    ("power pooling", image(nn.LPPool2d(2, 2)), IMAGE, {"0": 8}),
    ("nearest", image(nn.Upsample(scale_factor=2)), IMAGE, {"0": 8}),
    ("bilinear", image(nn.Upsample(size=(5, 7), mode="bilinear")), IMAGE, {"0": 8}),
    ("bicubic", image(nn.Upsample(size=(5, 7), mode="bicubic")), IMAGE, {"0": 8}),
    ("dropout", image(nn.Dropout(), nn.Dropout2d()), IMAGE, {"0": 8}),
    (
        "activations",
        row(
            nn.SiLU(), nn.Hardswish(), nn.Mish(), nn.ELU(), nn.Softplus(), nn.Hardtanh(), nn.SELU()
        ),
        ROW,
        {"0": 8},
    ),
    (
        "linear, view, convolution",
        chain(nn.Linear(6, 32), nn.Unflatten(1, (8, 2, 2)), nn.Conv2d(8, 3, 1)),
        ROW,
        {"0": 8},
    ),
    (
        "convolution, flatten, linear",
        chain(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 2)),
        IMAGE,
        {"0": 8},
    ),
    (
        "image to columns",
        chain(nn.Conv2d(3, 8, 1), nn.Unfold(3), nn.Conv1d(72, 2, 1)),
        IMAGE,
        {"0": 8},
    ),
    (
        "cumulative sum",
        Net(lambda m, x: m.b(m.a(x).cumsum(1)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        ROWS,
        {"a": 8},
    ),
    (
        "largest",
        Net(lambda m, x: m.b(m.a(x).topk(3, 1)[0].sum(1)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        ROWS,
        {"a": 8},
    ),
    ("embedding", chain(nn.Embedding(9, 8), nn.Linear(8, 3)), torch.zeros(2, 5).long(), {"0": 8}),
]


@pytest.mark.parametrize(
    ("model", "x", "sizes"), [case[1:] for case in NETWORKS], ids=[case[0] for case in NETWORKS]
)
def test_layers_are_cut_correctly(model, x, sizes):
    check(model, x, sizes)


def test_members_of_a_convolution_by_hand():
    model = image(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2))
    groups, _ = check(model, IMAGE, {"0": 4, "2": 4})
    first = next(group for group in groups if group.name == "0")
    twice = [0, 1, 2, 3, 0, 1, 2, 3]
    assert {place: channels.tolist() for place, channels in first.members.items()} == {
        ("0.weight", 0): twice,
        ("0.bias", 0): twice,
        ("1.weight", 0): twice,
        ("1.bias", 0): twice,
        ("1.running_mean", 0): twice,
        ("1.running_var", 0): twice,
        ("2.weight", 1): [0, 1, 2, 3],
    }


def test_layer_attributes_show_the_new_sizes():
    model = image(
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.PReLU(8),
        nn.ConvTranspose2d(8, 6, 1),
        nn.GroupNorm(6, 6),
        features=6,
    )
    _, model = check(model, IMAGE, {"0": 8, "4": 6})
    names = ("Conv2d(3, 4", "BatchNorm2d(4", "Conv2d(4, 4", "PReLU(num_parameters=4")
    names += ("ConvTranspose2d(4, 3", "GroupNorm(3, 3", "AdaptiveAvgPool2d", "Flatten")
    names += ("Linear(in_features=3, out_features=3",)
    assert all(str(layer).startswith(name) for layer, name in zip(model, names, strict=True))
    assert model[2].groups == 4


@pytest.mark.parametrize("out", [4, 2])
def test_transposed_convolution_outputs_are_weight_columns(out):
    """Its weight is (in, out, kernel): a group is named after the layer that makes it."""
    model = nn.Sequential(nn.ConvTranspose1d(3, out, 1), nn.Conv1d(out, 2, 1))
    groups, _ = check(model, SEQUENCE, {"0": out})
    assert groups[0].rows == (("0.weight", 1),)
