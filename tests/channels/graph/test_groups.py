# SPDX-License-Identifier: MIT
"""Whole networks: branches that meet, layers used twice, several inputs and outputs."""

import pytest
import torch
from cut_oracle import Net, check
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from regrow.channels import groups

ROW = torch.zeros(2, 6, dtype=torch.float64)
WORDS = torch.zeros(2, 5).long()
IMAGE = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
A = {"a": 8}


def conv(before, after, kernel=1, **more):
    return nn.Conv2d(before, after, kernel, **more)


def net(run, **layers):
    return Net(run, **({"a": conv(3, 8), "c": conv(8, 2)} | layers))


def dense(m, x):
    x = m.a(x)
    for layer in (m.b, m.d):
        x = torch.cat([x, layer(x).relu()], 1)
    return m.c(x)


def excited(m, x):
    y = m.a(x)
    return m.c(y * m.up(m.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid())


def across(m, x):
    """ECA: a convolution runs along the channels, whose places then matter."""
    y = m.a(x)
    return m.c(y * m.d(y.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None])


def unet(m, x):
    y = m.a(x).relu()
    z = F.interpolate(m.d(F.max_pool2d(y, 2)).relu(), scale_factor=2)
    return m.c(torch.cat([y, z], 1))


def autocast(m, x):
    y = m.a(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        y = m.d(y)
    return m.c(y)


def without_gradients(m, x):
    y = m.a(x)
    with torch.no_grad():
        y = m.d(y)
    return m.c(y)


def recomputed(m, x):
    return m.c(checkpoint(m.d, m.a(x), use_reentrant=False))


def written(m, x):
    y = m.a(x).clone()
    y[:, : m.k] = m.d(y).relu()
    return m.c(y)


def written_into_zeros(m, x):
    y = x.new_zeros(len(x), 8, 8, 8)
    y[:, : m.k] = m.d(m.a(x))
    return m.c(y)


def sized(model, k):
    model.k = k
    return model


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
        self.head.weight = self.words.weight

    def forward(self, x):
        x = self.words(x)
        return self.head(x + self.mlp(x))


def scaled():
    model = net(lambda m, x: m.c(m.a(x) * m.scale))
    model.register_buffer("scale", torch.ones(1, 8, 1, 1))
    return model


MIDDLE = {"d": conv(8, 6), "c": conv(6, 2)}
NETWORKS = [
    (
        "residual",
        net(lambda m, x: m.c(m.a(x) + m.d(m.b(x).relu())), b=conv(3, 6), d=conv(6, 8)),
        IMAGE,
        {"a": 8, "b": 6},
    ),
    (
        "layer scale",
        net(lambda m, x: m.c(m.a(x) + m.s * m.d(m.a(x))), d=conv(8, 8), s=torch.ones(8, 1, 1)),
        IMAGE,
        A,
    ),
    (
        "dense",
        net(dense, b=conv(8, 4), d=conv(12, 4), c=conv(16, 2)),
        IMAGE,
        {"a": 8, "b": 4, "d": 4},
    ),
    ("gate", net(excited, down=conv(8, 3), up=conv(3, 8)), IMAGE, {"a": 8, "down": 3}),
    ("along channels", net(across, d=nn.Conv1d(1, 1, 3, padding=1)), IMAGE, {}),
    ("u-net", net(unet, d=conv(8, 6), c=conv(14, 2)), IMAGE, {"a": 8, "d": 6}),
    ("used twice", net(lambda m, x: m.c(m.d(m.d(m.a(x)).relu())), d=conv(8, 8)), IMAGE, A),
    ("unused", net(lambda m, x: m.c(m.a(x)), d=nn.Linear(5, 5)), IMAGE, A),
    ("buffer", scaled(), IMAGE, A),
    ("tied words", Tied(), WORDS, {"mlp.2": 8, "mlp.0": 12}),
    (
        "tied and turned",
        Net(
            lambda m, x: m.c(F.linear(m.d(x).relu(), m.d.weight.mT)),
            d=nn.Linear(6, 8),
            c=nn.Linear(6, 2),
        ),
        ROW,
        {"d": 8},
    ),
    (
        "named inputs",
        Net(
            lambda m, one, two: {"s": m.c(m.a(one) + m.b(two)), "n": [m.d(m.a(one))]},
            a=nn.Linear(6, 8),
            b=nn.Linear(4, 8),
            c=nn.Linear(8, 2),
            d=nn.Linear(8, 3),
        ),
        {"one": ROW, "two": ROW[:, :4]},
        A,
    ),
    (
        "two inputs",
        Net(
            lambda m, one, two: (m.c(m.a(one) + m.b(two)), two),
            a=nn.Linear(6, 8),
            b=nn.Linear(4, 8),
            c=nn.Linear(8, 2),
        ),
        (ROW, ROW[:, :4]),
        A,
    ),
    ("autocast", net(autocast, **MIDDLE), IMAGE, {"a": 8, "d": 6}),
    ("no gradients", net(without_gradients, **MIDDLE), IMAGE, {"a": 8, "d": 6}),
    ("checkpoint", net(recomputed, **MIDDLE), IMAGE, {"a": 8, "d": 6}),
    ("written", sized(net(written, d=conv(8, 3)), 3), IMAGE, {"a": 3, "a#2": 5}),
    ("written into zeros", sized(net(written_into_zeros, d=conv(8, 3)), 3), IMAGE, A),
]


@pytest.mark.parametrize(
    ("model", "x", "sizes"), [case[1:] for case in NETWORKS], ids=[case[0] for case in NETWORKS]
)
def test_whole_networks_are_cut_correctly(model, x, sizes):
    check(model, x, sizes)


@pytest.mark.parametrize(
    ("run", "layer", "reason"),
    [
        (lambda m, x: m.c(torch.fft.rfft(m.a(x)).real), nn.Identity(), "no rule for fft_rfft"),
        (lambda m, x: m.c(m.a(x).cumsum(1)), nn.Identity(), "sorting or adding up along it"),
        (
            lambda m, x: m.c(m.a(x)[:, (x[0, :2] > 0).long()]),
            nn.Identity(),
            "index by an index that data decides",
        ),
    ],
    ids=["fft", "cumsum", "index"],
)
def test_operators_without_a_rule_prevent_a_cut_and_give_a_reason(run, layer, reason):
    width = 5 if "fft" in reason else 8
    last = 2 if "index" in reason else width
    model = Net(run, a=nn.Linear(6, 8), d=layer, c=nn.Linear(last, 2))
    found, _ = check(model, ROW, {})
    stuck = [g.fixed_reason for g in found if ("a.weight", 0) in g.members]
    assert not stuck or reason in stuck[0]


def test_group_prints_its_members_and_reasons():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4), nn.Conv2d(4, 2, 1))
    first, last = groups(model, IMAGE.float())
    assert str(first).splitlines() == [
        "0: 4 channels",
        "  approximate: a zeroed channel still counts in group norm",
        "  0.weight[0] 0-3 of 4",
        "  0.bias[0] 0-3 of 4",
        "  1.weight[0] 0-3 of 4",
        "  1.bias[0] 0-3 of 4",
        "  2.weight[1] 0-3 of 4",
    ]
    assert last.fixed_reason == "the network's output"
    assert (first.rows, last.rows) == ((("0.weight", 0),), (("2.weight", 0),))
