# SPDX-License-Identifier: MIT
"""Attributes that hold cut sizes follow a cut; other equal numbers do not."""

import pytest
import torch
from torch import nn

from regrow.channels import prune

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Attention by hand: one attribute is a count of heads, others equal its numbers by chance."""

    def __init__(self, heads=4, size=2):
        super().__init__()
        self.heads = heads
        self.shape = (heads, size)
        self.rounds = 7  # no size
        self.flag = True  # equals 1, and is none
        self._hidden = heads  # private to the module
        self.inside = nn.Linear(6, heads * size)
        self.outside = nn.Linear(heads * size, 3)

    def forward(self, x):
        parts = self.inside(x).view(-1, self.heads, self.shape[1])
        return self.outside(parts.relu().flatten(1))


def cut(heads, by):
    """The model without its first `by` heads, as one builds it."""
    torch.manual_seed(0)
    model = Heads(heads)
    with torch.no_grad():  # the least important come first
        model.inside.weight.mul_(torch.arange(1.0, 2 * heads + 1)[:, None])
    small = Heads(heads - by)
    with torch.no_grad():
        small.inside.weight.copy_(model.inside.weight[2 * by :])
        small.inside.bias.copy_(model.inside.bias[2 * by :])
        small.outside.weight.copy_(model.outside.weight[:, 2 * by :])
        small.outside.bias.copy_(model.outside.bias)
    return model, small


@pytest.mark.parametrize("by", [1, 2, 3])
def test_cut_model_equals_the_model_built_small(by):
    model, small = cut(4, by)
    model.double(), small.double()
    with torch.no_grad():  # l2 of a head's members follows its rows alone
        model.outside.weight.fill_(0.5), small.outside.weight.fill_(0.5)
    prune(model, X.double(), by / 4, round_to=1, include=["inside"])
    assert model.inside.out_features == 2 * (4 - by)
    torch.testing.assert_close(model(X.double()), small(X.double()), rtol=1e-12, atol=1e-12)


def test_only_attributes_of_the_cut_size_change():
    model, _ = cut(4, 2)
    plan = prune(model, X, 0.5, round_to=1)
    sizes = (model.heads, *model.shape)
    assert sizes[0] * sizes[2] == model.inside.out_features == 4
    assert (model.rounds, model.flag, model._hidden) == (7, True, 4)
    plan.undo()
    assert (model.heads, model.shape) == (4, (4, 2))


def test_lists_and_tuples_keep_their_type():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = [4, 4]
            self.a, self.b = nn.Linear(6, 8), nn.Linear(4, 2)

        def forward(self, x):
            one, two = self.a(x).split(self.parts, 1)
            return self.b(one * two)

    model = Split()
    prune(model, X, 0.5, round_to=1)
    assert model.parts == [2, 2]
    assert model(X).shape == (4, 2)
