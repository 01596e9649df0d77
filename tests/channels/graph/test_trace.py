# SPDX-License-Identifier: MIT
"""Tracing changes nothing, includes layers used only in training, and reports its limits."""

import copy

import pytest
import torch
from cut_oracle import check, distinct
from torch import nn

from regrow.channels import groups, prune
from regrow.channels.graph.trace import trace
from regrow.utils.errors import ConfigError

IMAGE = torch.zeros(2, 3, 8, 8, dtype=torch.float64)


class Auxiliary(nn.Module):
    """A second head that only training uses."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.b = nn.Conv2d(8, 6, 1)
        self.c, self.extra = nn.Conv2d(6, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.a(x).relu()
        y = self.c(self.b(x))
        return (y, self.extra(x)) if self.training else y


def test_heads_used_only_in_training_are_cut():
    _, model = check(Auxiliary(), IMAGE, {"a.0": 8, "b": 6})
    assert model.a[1].num_batches_tracked == 0, "tracing in training mode counts nothing"
    assert model.extra.weight.shape == (2, 4, 1, 1)
    assert [tuple(y.shape) for y in model.train()(IMAGE)] == [(2, 2, 8, 8)] * 2


def test_tracing_leaves_the_model_unchanged():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1))
    model = distinct(model).train()
    model[2].eval()
    before, ids = copy.deepcopy(model.state_dict()), [*map(id, model.parameters())]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    trace(model, IMAGE)
    assert torch.equal(torch.rand(1), expected), "the generator is where it was"
    assert [m.training for m in model] == [True, True, False, True]
    assert [*map(id, model.parameters())] == ids
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_data_dependent_control_flow_raises():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else x

    model = Model()
    with pytest.raises(ConfigError, match="cannot trace Model"):
        groups(model, torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="check example_input"):
        prune(model, torch.zeros(2, 5))


def test_network_with_only_an_output_layer_raises():
    with pytest.raises(
        ConfigError, match=r"cut: weight \(100% of the MACs\): the network's output"
    ):
        prune(nn.Linear(4, 3), torch.zeros(2, 4))
