# SPDX-License-Identifier: MIT
"""Channels are cut on the device: the CPU's choice, with optimizer state sliced in place."""

import copy

import pytest
import torch
from device_fits import Placed, on
from hand_cut_network import INPUT, net
from tiny_channel_fits import Net, pruning, run, sizes
from torch import nn, optim

import regrow
from regrow import ChannelPruner
from regrow.channels.config import ChannelConfig


def convolutions():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(
        *layers, nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 4),
    ).double()  # fmt: skip


@pytest.mark.parametrize("of", ["channels", "macs", "params"])
def test_the_device_cuts_the_channels_that_the_cpu_cuts(device, of):
    here, x = convolutions(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    there = copy.deepcopy(here).to(device)
    cut = regrow.channels.prune(here, x, 0.5, of=of, round_to=1)
    other = regrow.channels.prune(there, x.to(device), 0.5, of=of, round_to=1)
    assert other.removed == cut.removed
    for name, value in here.state_dict().items():
        found = there.state_dict()[name]
        assert found.device.type == device.type
        assert torch.equal(found.cpu(), value), name
    assert torch.allclose(there.eval()(x.to(device)).cpu(), here.eval()(x))
    other.undo()
    assert all(torch.equal(v.cpu(), dict(convolutions().state_dict())[n])
               for n, v in there.state_dict().items() if "num_batches" not in n)  # fmt: skip


def trained_and_cut(device, make):
    """A network after three steps, a cut with its optimizer's state, and three more."""
    model = net().to(device)
    optimizer = make(model.parameters())
    pruner = ChannelPruner(model, INPUT.to(device), ChannelConfig())
    pruner.enforcer.hook(optimizer)

    def train():
        for step in range(3):
            optimizer.zero_grad()
            torch.manual_seed(step)
            x = torch.randn(16, 6, dtype=torch.float64).to(device)
            model(x).square().sum().backward()
            pruner.enforcer.prepare()
            optimizer.step()

    train()
    pruner.prune_to(0.5, [optimizer])
    train()
    removed = {name: places.tolist() for name, places in pruner.removed.items()}
    pruner.compact([optimizer])
    train()
    return model, optimizer, removed


@pytest.mark.parametrize("kind", ["sgd", "adam", "adam fused"])
def test_optimizer_state_is_sliced_on_the_device(device, kind):
    make = {
        "sgd": lambda p: optim.SGD(p, lr=1e-3, momentum=0.9),
        "adam": lambda p: optim.Adam(p, lr=1e-3),
        "adam fused": lambda p: optim.Adam(p, lr=1e-3, fused=True),
    }[kind]
    model, optimizer, removed = trained_and_cut(device, make)
    reference, other, expected = trained_and_cut(torch.device("cpu"), make)
    assert removed == expected
    for one, two in zip(model.parameters(), reference.parameters(), strict=True):
        assert one.device.type == device.type
        torch.testing.assert_close(one.detach().cpu(), two.detach())
        for key, value in optimizer.state[one].items():
            if value.dim():
                assert value.device.type == device.type
                assert value.shape == one.shape
                torch.testing.assert_close(value.cpu(), other.state[two][key])


@pytest.mark.parametrize("compact", ["end", "event"])
def test_a_fit_on_the_device_ends_with_the_small_network(device, compact):
    module, placed, callback = Net(), Placed(), pruning(compact=compact)
    run(module, callback, placed, **on(device))
    assert placed.kinds == {device.type}
    assert sum(sizes(module)) <= 0.4 * 20 + 1e-9
    assert module.body[0].weight.shape[0] == module.body[0].out_features


def test_a_latency_budget_is_measured_on_the_device(device):
    model, x = convolutions().to(device), torch.randn(8, 3, 16, 16, dtype=torch.float64)
    callback = ChannelPruner(model, x.to(device), ChannelConfig(of="latency", round_to=1))
    callback.prune_to(0.1)
    callback.compact()
    assert model[0].out_channels + model[3].out_channels < 48
