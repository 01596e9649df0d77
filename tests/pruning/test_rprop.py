# SPDX-License-Identifier: MIT
"""Rprop's step sizes of regrown weights are the initial ones."""

import pytest
import torch
from torch import nn, optim

from regrow.pruning.drop_and_grow import drop_and_grow
from regrow.pruning.pruner import Pruner

RATES = (0.02, 0.03)


def made(**kw):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5))
    groups = [
        {"params": model[k].parameters(), "lr": r} for k, r in zip((0, 2), RATES, strict=True)
    ]
    optimizer, pruner = optim.Rprop(groups), Pruner(model, **kw)
    pruner.enforcer.hook(optimizer)
    for _ in range(3):
        step(model, optimizer, pruner)
    pruner.prune_to(0.8, [optimizer])
    step(model, optimizer, pruner)
    return model, optimizer, pruner


def step(model, optimizer, pruner):
    optimizer.zero_grad()
    model(torch.randn(8, 10)).square().sum().backward()
    pruner.enforcer.prepare()
    optimizer.step()


def update(pruner, optimizer):
    pruner.model(torch.randn(8, 10)).square().sum().backward()
    drop_and_grow(pruner, 0.3, grow="random", optimizers=[optimizer])


@pytest.mark.parametrize(
    "bring",
    [
        lambda pruner, optimizer: pruner.regrow(0.5, optimizers=(o for o in [optimizer])),
        lambda pruner, optimizer: pruner.unprune("2.weight", [optimizer]),
        lambda pruner, optimizer: pruner.unprune(None, [optimizer]),
        update,
    ],
)
def test_regrown_weights_start_with_the_learning_rate_as_step_size(bring):
    """As a fresh optimizer would: the first step is of that length."""
    model, optimizer, pruner = made(keep_removed=True)
    kept = pruner.masks
    sizes = {n: optimizer.state[model.get_parameter(n)]["step_size"].clone() for n in kept}
    bring(pruner, optimizer)
    before = {name: model.get_parameter(name).detach().clone() for name in kept}
    now, count = pruner.masks, 0
    for name, rate in zip(kept, RATES, strict=True):
        found = optimizer.state[model.get_parameter(name)]["step_size"]
        back = now[name] & ~kept[name]
        stayed = now[name] & kept[name] & (sizes[name] != 0)
        assert (found[back] == rate).all()
        assert torch.equal(found[stayed], sizes[name][stayed])
        assert not found[~now[name]].any()
        count += int(back.sum())
    assert count
    step(model, optimizer, pruner)
    for name, rate in zip(kept, RATES, strict=True):
        back = now[name] & ~kept[name]
        moved = (model.get_parameter(name).detach() - before[name])[back].abs()
        assert torch.allclose(moved[moved > 0], torch.tensor(rate), rtol=1e-4)


def test_stored_step_sizes_are_restored():
    model, optimizer, pruner = made(keep_removed="moments")
    weight = model[0].weight
    first = optimizer.state[weight]["step_size"].clone()
    kept = pruner.masks["0.weight"]
    pruner.regrow(1, init="removed", optimizers=[optimizer])
    found = optimizer.state[weight]["step_size"]
    assert torch.equal(found[kept], first[kept])
    assert found[~kept].unique().numel() > 1
    assert (found[~kept] > 0).all()
