# SPDX-License-Identifier: MIT
"""A small network with its channels listed by hand, and helpers to train and compare it."""

import torch
from torch import nn

from regrow import ChannelPruner
from regrow.channels.config import ChannelConfig

INPUT = torch.zeros(4, 6, dtype=torch.float64)
# where the channels of a layer stand, written down by hand
PLACES = {
    "0": {"0.weight": 0, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 1},
    "3": {"3.weight": 0, "3.bias": 0, "5.weight": 1},
}


def net(seed=0):
    """The sigmoid of a masked channel is 1/2, which zero columns must swallow."""
    torch.manual_seed(seed)
    layers = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Sigmoid(), nn.Linear(12, 8), nn.ReLU()
    made = nn.Sequential(*layers, nn.Linear(8, 3)).double()
    with torch.no_grad():
        made[1].running_mean.normal_()
        made[1].running_var.uniform_(0.5, 2)
        made[1].bias.normal_()
        made[1].weight.uniform_(0.5, 2)
    return made


def pruner(model, **kw):
    keep = kw.pop("keep_removed", True)
    return ChannelPruner(model, INPUT, ChannelConfig(**kw), keep_removed=keep)


def inputs(seed=1, count=16):
    return torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def train(model, optimizer, made=None, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        model(inputs(step)).square().sum().backward()
        if made is not None:
            made.enforcer.prepare()
        optimizer.step()


def output(model):
    mode = model.training
    with torch.no_grad():
        found = model.eval()(inputs())
    model.train(mode)
    return found


def taken(tensor, dim, channels):
    return tensor.index_select(dim, channels)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
