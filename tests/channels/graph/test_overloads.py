# SPDX-License-Identifier: MIT
"""Operators whose overloads differ in kind, and Python numbers made inside forward."""

import pytest
import torch
from cut_oracle import Net, check
from torch import nn
from torch.nn import functional as F

from regrow.channels import groups

ROW = torch.zeros(2, 6, dtype=torch.float64)
IMAGE = torch.zeros(2, 3, 8, 8, dtype=torch.float64)


def rows(run, **layers):
    return Net(run, **({"a": nn.Linear(6, 8), "b": nn.Linear(6, 8), "c": nn.Linear(8, 2)} | layers))


def reduced(name):
    """A reduction over the last dimension, which keeps the channels."""
    return lambda m, x: m.c(getattr(torch, name)(m.a(x)[:, :, None].expand(-1, -1, 5), 2)[0])


def transposed(m, x):
    y = torch.convolution(
        m.a(x), m.w, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1
    )  # in torch.export one operator for both directions
    return m.c(y)


@pytest.mark.parametrize("name", ["max", "min", "maximum", "minimum", "fmax"])
def test_maximum_of_two_tensors_is_elementwise(name):
    """The channels of both sides are cut together."""
    model = rows(lambda m, x: m.c(getattr(torch, name)(m.a(x), m.b(x))))
    found, _ = check(model, ROW, {"a": 8})
    members = {place for g in found if g.name == "a" for place in g.members}
    assert members == {
        ("a.weight", 0), ("a.bias", 0), ("b.weight", 0), ("b.bias", 0), ("c.weight", 1)
    }  # fmt: skip


@pytest.mark.parametrize("name", ["max", "min"])
def test_maximum_with_one_column_broadcasts(name):
    model = rows(lambda m, x: m.c(getattr(torch, name)(m.a(x), m.b(x))), b=nn.Linear(6, 1))
    check(model, ROW, {"a": 8})


@pytest.mark.parametrize("name", ["max", "min", "std_mean"])
def test_a_reduction_over_another_dimension_keeps_the_channels(name):
    check(rows(reduced(name)), ROW, {"a": 8})


@pytest.mark.parametrize("name", ["max", "min", "mean", "std"])
def test_reduction_over_all_dimensions_gives_a_number(name):
    model = rows(lambda m, x: m.c(m.a(x)) * getattr(torch, name)(x))
    check(model, ROW, {"a": 8})


def test_linear_with_a_vector_sums_over_it():
    """The weights of distances in D-FINE: `(batch, rows, in)` by `(in,)` is `(batch, rows)`."""
    layers = {"a": nn.Linear(6, 8), "w": torch.zeros(8), "c": nn.Linear(5, 2)}
    model = Net(lambda m, x: m.c(F.linear(m.a(x), m.w)), **layers)
    check(model, torch.zeros(2, 5, 6, dtype=torch.float64), {"a": 8})
    model = Net(lambda m, x: m.c(F.linear(m.a(x).transpose(1, 2), m.w)), **layers)
    model.w, model.c = nn.Parameter(torch.zeros(5)), nn.Linear(8, 2)
    check(model, torch.zeros(2, 5, 6, dtype=torch.float64), {"a": 8})


def test_transposed_convolution_shares_the_operator_of_convolution():
    weight = torch.zeros(8, 6, 2, 2)  # (in, out, kh, kw)
    model = Net(transposed, a=nn.Conv2d(3, 8, 1), w=weight, c=nn.Conv2d(6, 2, 1))
    check(model, IMAGE, {"w": 8, "w#2": 6})


class Numbers(nn.Module):
    """Makes Python numbers of buffers inside forward."""

    def __init__(self, run):
        super().__init__()
        self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 2)
        self.register_buffer("scale", torch.tensor(1.5))
        self.register_buffer("strides", torch.tensor([8.0, 16.0]))
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def grid(m, x):
    """As in the heads of detectors."""
    points = [torch.full((3, 1), stride.item()) for stride in m.strides]
    return m.c(m.a(x)) * torch.cat(points).sum()


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.c(m.a(x) * m.scale.item()),
        lambda m, x: m.c(m.a(x) * (2 * m.scale.item() + 1)),
        lambda m, x: m.c(m.a(x).clamp(-m.scale.item(), m.scale.item())),
        lambda m, x: m.c(m.a(x)) * m.strides.tolist()[1],
        grid,
    ],
    ids=["item", "arithmetic", "clamp", "tolist", "grid"],
)
def test_a_number_has_no_channels(run):
    check(Numbers(run), ROW, {"a": 8})


def test_data_dependent_number_does_not_prevent_a_cut():
    model = rows(lambda m, x: m.c(m.a(x)) * x.sum().item())
    assert [g.size for g in groups(model.double(), ROW) if not g.fixed_reason] == [8]
