# SPDX-License-Identifier: MIT
"""float16 with the device's gradient scaler and skipped steps, and bfloat16."""

from functools import partial

import pytest
import torch
from device_fits import Placed, on
from float_watch import AnyWatch, pruned
from overflowing_fits import Steps, overflowing, scaled
from tiny_fits import ADAM, SGD, WEIGHTS, Events, Net, Watch, fit, loader, zeros
from torch import nn, optim

import regrow
from regrow import MagnitudePruning, Table

LEVELS = Table({"3it": 0.5, "9it": 0.8})
# Fused SGD is left out: torch's own advances momentum in steps that overflow, and its CPU kernel
# writes wrong momenta in half precision (pytorch/pytorch#191763).
MAKES = {
    "sgd": SGD,
    "adam": ADAM,
    "adamw fused": partial(optim.AdamW, lr=0.01, fused=True),
}


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("at", [(), (3, 4, 9)])
def test_steps_that_the_scaler_skips_move_no_event(device, make, at):
    watch, counted, placed = Watch(), Steps(), Placed()
    module, pruning = overflowing(*at, make=MAKES[make]), MagnitudePruning(0.8, schedule=LEVELS)
    half = scaled(device=device.type)
    fit(module, watch, counted, pruning, placed, val=loader(), **half, **on(device))
    assert watch.steps == [3, 9]
    assert counted.made == (16 if "fused" in make else 16 - len(at))  # a fused step skips itself
    assert zeros(module) == round(0.8 * WEIGHTS)
    assert placed.kinds == {device.type}


def test_events_by_gradients_wait_for_a_step_that_is_not_skipped(device):
    events, module = Events(), overflowing(3, 4)
    pruning = MagnitudePruning(0.5, schedule=Table({"3it": 0.25, "9it": 0.5}), criterion="taylor")
    fit(module, events, pruning, **scaled(device=device.type), **on(device))
    assert events.seen == [(5, 0.25), (9, 0.5)]
    assert zeros(module) == WEIGHTS // 2


def test_a_plain_loop_with_a_scaler_keeps_zeros_when_a_step_is_skipped(device):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(device)
    optimizer = optim.AdamW(net.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler(device.type, init_scale=128.0)
    masks = regrow.prune(net, 0.5)
    with regrow.enforce(net, masks, optimizer):
        for step in range(6):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.float16):
                loss = net(torch.ones(4, 6, device=device)).float().square().mean()
            scaler.scale(loss * (float("inf") if step == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            for name, mask in masks.items():
                assert not net.get_parameter(name).detach()[~mask].any()
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    assert float(scaler.get_scale()) == 64.0


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("make", MAKES)
def test_pruned_weights_stay_zero_in_bfloat16(device, make, precision):
    watch, pruning = AnyWatch(), MagnitudePruning(0.8, schedule=LEVELS)
    module = Net(MAKES[make])
    fit(module, watch, pruning, precision=precision, val=loader(), **on(device))
    assert watch.steps == [3, 9]
    assert pruned(module) == round(0.8 * WEIGHTS)
