# SPDX-License-Identifier: MIT
"""Pruned weights and their optimizer state are zero on the device, by few kernels."""

from functools import partial

import pytest
import torch
from device_fits import Placed, on
from tiny_fits import WEIGHTS, Net, Watch, fit, loader, zeros
from torch import nn, optim
from torch.profiler import ProfilerActivity, profile

import regrow
from regrow import MagnitudePruning, Table

OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgd foreach": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd fused": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": partial(optim.Adam, lr=0.01, foreach=False, amsgrad=True),
    "adam foreach": partial(optim.Adam, lr=0.01, foreach=True, amsgrad=True, weight_decay=0.1),
    "adam fused": partial(optim.Adam, lr=0.01, fused=True, amsgrad=True),
    "adamw foreach": partial(optim.AdamW, lr=0.01, foreach=True),
    "adamw fused": partial(optim.AdamW, lr=0.01, fused=True),
    "nadam foreach": partial(optim.NAdam, foreach=True, decoupled_weight_decay=True),
    "rmsprop foreach": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True, foreach=True),
    "adagrad foreach": partial(optim.Adagrad, lr=0.01, foreach=True, weight_decay=0.1),
    "adamax foreach": partial(optim.Adamax, foreach=True),
    "rprop foreach": partial(optim.Rprop, foreach=True),
    "lbfgs": partial(optim.LBFGS, max_iter=3, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_stay_zero_under_every_optimizer(device, name):
    watch, placed = Watch(), Placed()
    pruning = MagnitudePruning(0.8, schedule=Table({"3it": 0.5, "11it": 0.8}))
    module = Net(OPTIMIZERS[name])
    fit(module, watch, pruning, placed, val=loader(), **on(device))
    assert watch.steps == [3, 11]
    assert zeros(module) == round(0.8 * WEIGHTS)
    assert placed.kinds == {device.type}


@pytest.mark.parametrize("name", ["sgd fused", "adamw foreach"])
def test_nan_and_minus_zero_at_pruned_places_become_plus_zero(device, name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(device)
    optimizer = OPTIMIZERS[name](net.parameters())
    masks = regrow.prune(net, 0.5)
    with regrow.enforce(net, masks, optimizer):
        for number, (key, mask) in enumerate(masks.items()):
            net.get_parameter(key).data[~mask] = (float("nan"), -0.0)[number]
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    for key, mask in masks.items():
        gone = net.get_parameter(key).detach()[~mask]
        assert not gone.any()
        assert not gone.signbit().any()


def test_the_number_of_kernels_does_not_grow_with_the_layers(cuda):
    """Those of one step's masking, as the profile of the device shows them."""
    launched = []
    for layers in (8, 256):
        net = nn.ModuleList(nn.Linear(16, 16) for _ in range(layers)).to(cuda)
        enforcer = regrow.Pruner(net).state.enforcer
        for name in enforcer.parameters:
            enforcer.set_mask(name, torch.rand(16, 16, device=cuda) < 0.5)
        enforcer.weights()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            enforcer.weights()
            torch.cuda.synchronize()
        kernels = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        launched.append(len(kernels))
    assert launched[0] >= 1
    assert launched[1] <= 256 // 16
