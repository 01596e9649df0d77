# SPDX-License-Identifier: MIT
"""Inputs of layers as a forward pass gives them."""

import torch
from torch import nn

from regrow.runtime.layer_inputs import layer_inputs


def test_inputs_of_layers_are_those_of_their_first_call():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
    net.append(net[2])
    unused = nn.Linear(2, 2)
    x = torch.randn(6, 3)
    found = layer_inputs(net, {"first": net[0], "last": net[2], "unused": unused}, x)
    assert {*found} == {"first", "last"}
    assert torch.equal(found["first"], x)
    assert torch.equal(found["last"], net[1](net[0](x)).detach())


def test_an_input_given_by_keyword_is_found():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, x):
            return self.fc(input=x)

    net, x = Net(), torch.randn(2, 3)
    assert torch.equal(layer_inputs(net, {"fc": net.fc}, x)["fc"], x)
