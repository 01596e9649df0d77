# SPDX-License-Identifier: MIT
"""A pruner in a plain training loop."""

import torch
from torch import nn

from regrow.pruning.pruner import Pruner


def zeros(model):
    return sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)


def test_changing_masks_hold_in_a_custom_loop():
    """Pruned weights stay +0.0 under momentum and weight decay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))  # 300 weights
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    pruner = Pruner(model)
    handle = pruner.hook(optimizer)

    def step():
        optimizer.zero_grad()
        model(torch.randn(8, 10)).square().sum().backward()
        optimizer.step()

    for sparsity in (0.0, 0.5, 0.9):
        pruner.prune_to(sparsity, [optimizer])
        for _ in range(3):
            step()
        for target in pruner.targets:
            gone = ~pruner.masks[target.name]
            assert not optimizer.state[target.parameter]["exp_avg"][gone].any()
            assert not target.parameter.grad[gone].any()
            assert not target.parameter.detach()[gone].view(torch.int32).any()
            assert target.parameter.detach()[~gone].all()
    assert zeros(model) == 270
    handle.remove()
    step()
    assert zeros(model) < 270
