# SPDX-License-Identifier: MIT
"""Out of memory at any operation of a mask update: nothing changed, or training cannot continue."""

import copy

import pytest
import torch
from failing_memory import Full
from tiny_fits import copied, equal
from torch import nn, optim

from regrow import Pruner, StateError
from regrow.channels.pruner import ChannelPruner
from regrow.pruning.config import PruningConfig
from regrow.pruning.drop_and_grow import draw_masks, drop_and_grow


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def trained(pruner, optimizer, steps=2):
    """Train some steps, so that there are moments and gradients."""
    handle = [pruner.enforcer.hook(optimizer, gradients=True)]
    for _ in range(steps):
        optimizer.zero_grad()
        pruner.model(torch.ones(4, 6)).square().sum().backward()
        optimizer.step()
    for hook in handle:
        hook.remove()
    pruner.model(torch.ones(4, 6)).square().sum().backward()


def made(sparsity=0.4, **kw):
    """A pruner after an event, and its optimizer."""
    pruner = Pruner(network(), PruningConfig(**kw.pop("method", {})), **kw)
    optimizer = optim.Adam(pruner.model.parameters(), lr=0.01)
    trained(pruner, optimizer)
    if sparsity:
        pruner.prune_to(sparsity, [optimizer])
        trained(pruner, optimizer)
    return pruner, optimizer


def channels():
    pruner = ChannelPruner(network(), torch.ones(2, 6))
    optimizer = optim.Adam(pruner.model.parameters(), lr=0.01)
    trained(pruner, optimizer)
    pruner.prune_to(0.25, [optimizer])
    return pruner, optimizer


def back(pruner, optimizer):
    """A rollback: an older state is loaded again."""
    pruner.load_state_dict(back.state)


def older():
    pruner, optimizer = made(keep_removed=True)
    back.state = copy.deepcopy(pruner.state_dict())
    pruner.prune_to(0.7, [optimizer])
    return pruner, optimizer


ACTS = {
    "prune": (lambda: made(keep_removed=True), lambda p, o: p.prune_to(0.7, [o])),
    "moments": (lambda: made(keep_removed="moments"), lambda p, o: p.prune_to(0.7, [o])),
    "taylor": (lambda: made(method={"criterion": "taylor"}), lambda p, o: p.prune_to(0.7, [o])),
    "blocks": (
        lambda: made(method={"granularity": "block:1x2", "distribution": "erk"}),
        lambda p, o: p.prune_to(0.7, [o]),
    ),
    "dense": (lambda: made(keep_removed=True), lambda p, o: p.prune_to(0.0, [o])),
    "soft": (lambda: made(soft=True), lambda p, o: p.prune_to(0.7, [o])),
    "unprune": (lambda: made(keep_removed="moments"), lambda p, o: p.unprune(None, [o])),
    "soft unprune": (lambda: made(soft=True), lambda p, o: p.unprune(["0"], [o])),
    "regrow": (
        lambda: made(keep_removed="moments"),
        lambda p, o: p.regrow(0.5, init="removed", train="regrown", optimizers=[o]),
    ),
    "draw": (lambda: made(0.0), lambda p, o: draw_masks(p, 0.5, [o])),
    "rigl": (made, lambda p, o: drop_and_grow(p, 0.5, init="he", optimizers=[o])),
    "set": (made, lambda p, o: drop_and_grow(p, 0.5, grow="random", optimizers=[o])),
    "rollback": (older, back),
    "channels": (channels, lambda p, o: p.prune_to(0.5, [o])),
    "channels back": (channels, lambda p, o: p.regrow(1.0, optimizers=[o])),
}


def everything(pruner, optimizer):
    """All that an event can change, bit for bit."""
    grads = [p.grad.clone() for p in pruner.model.parameters()]
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    return [copied(pruner.model), moments, copy.deepcopy(pruner.state_dict()), grads]


def refused(pruner, optimizer):
    """Whether saving the masks, applying them and training all raise an error."""
    uses = [
        pruner.state_dict,
        lambda: pruner.enforce([optimizer]),
        lambda: trained(pruner, optimizer, 1),
    ]
    for use in uses:
        with pytest.raises(StateError, match="failed half-way, so masks and weights do not match"):
            use()
    return True


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ACTS)
def test_out_of_memory_at_every_operation(name, stride):
    make, act = ACTS[name]
    as_before = over = 0
    if stride > 1 and "channels" in name:  # which try their cut first
        stride *= 5
    for left in range(1, 100_000, stride):
        pruner, optimizer = make()
        before = everything(pruner, optimizer)
        try:
            with Full(left):
                act(pruner, optimizer)
        except torch.OutOfMemoryError:
            if pruner.enforcer.transaction.failed is None:
                assert equal(everything(pruner, optimizer), before), left
                as_before += 1
            else:
                over += refused(pruner, optimizer)
        else:
            break
    assert as_before or "unprune" in name  # which has nothing to choose
    assert over


def test_loading_a_whole_state_recovers_from_a_failed_event():
    pruner, optimizer = made(keep_removed=True)
    state, weights = copy.deepcopy(pruner.state_dict()), copied(pruner.model)
    for left in range(1, 1000):
        if pruner.enforcer.transaction.failed:
            break
        with pytest.raises(torch.OutOfMemoryError), Full(left):
            pruner.prune_to(0.7, [optimizer])
    pruner.load_state_dict(state)
    pruner.model.load_state_dict(weights)
    pruner.enforce([optimizer])
    assert equal(pruner.state_dict(), state)
    assert pruner.prune_to(0.7, [optimizer])["after"] == pytest.approx(0.7, abs=0.01)
