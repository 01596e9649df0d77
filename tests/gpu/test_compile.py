# SPDX-License-Identifier: MIT
"""Inductor's kernels train with masks, and an event compiles nothing."""

import pytest
import torch
from compiled_modules import Inner
from device_fits import on
from tiny_fits import ADAM, WEIGHTS, Net, Watch, fit, loader, zeros
from torch import nn, optim
from torch._dynamo.testing import CompileCounterWithBackend

import regrow
from regrow import MagnitudePruning, Table

pytestmark = pytest.mark.usefixtures("real_device")
LEVELS = Table({"2it": 0.3, "5it": 0.5, "9it": 0.8})


@pytest.fixture
def counter():
    """Inductor, with a count of the graphs that it compiles."""
    torch._dynamo.reset()
    yield CompileCounterWithBackend("inductor")
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_masks_hold_under_inductor_and_events_compile_nothing(device, counter, precision):
    fit(Inner(counter), val=loader(2), precision=precision, **on(device))
    control = counter.frame_count
    torch._dynamo.reset()
    counter.frame_count = 0
    watch, pruning, module = Watch(), MagnitudePruning(0.8, schedule=LEVELS), Inner(counter)
    fit(module, watch, pruning, val=loader(2), precision=precision, **on(device))
    assert watch.steps == [2, 5, 9]
    assert counter.frame_count == control >= 1
    assert zeros(module) == round(0.8 * WEIGHTS)


def test_a_compiled_fit_equals_the_plain_one(device, counter):
    modules = [Inner(counter), Net(ADAM)]
    for module in modules:
        fit(module, MagnitudePruning(0.8, schedule=LEVELS), **on(device))
    for one, other in zip(*(module.parameters() for module in modules), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_passes_see_the_zeros_of_later_events(device, mode):
    """In mode "reduce-overhead" passes are CUDA graphs."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).to(device)
    optimizer = optim.AdamW(net.parameters(), lr=0.01)
    compiled, pruner = torch.compile(net, mode=mode), regrow.Pruner(net, keep_removed=True)
    pruner.hook(optimizer)
    x = torch.randn(16, 32, device=device)
    for sparsity in (0.3, 0.6, 0.9):
        pruner.prune_to(sparsity, [optimizer])
        for _ in range(4):
            optimizer.zero_grad()
            compiled(x).square().mean().backward()
            optimizer.step()
        assert regrow.sparsity(net) >= pruner.sparsity
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-3, atol=1e-4)
