# SPDX-License-Identifier: MIT
"""Movement pruning with changing masks: scores accumulate at pruned places too."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import SGD, WEIGHTS, Net, copied, equal, fit, loader, weights, zeros

from regrow import MagnitudePruning, Table

EVENTS = {3: 0.3, 6: 0.5, 9: 0.7, 12: 0.8}
FAST = partial(torch.optim.SGD, lr=0.5)


def soft():
    plan = Table({f"{step}it": sparsity for step, sparsity in EVENTS.items()})
    return MagnitudePruning(schedule=plan, criterion="movement", soft=True)


def top(scores, count):
    """True for all but the `count` lowest, over all layers; the highest of each stays."""
    parts = [s.double().numpy().ravel().copy() for s in scores.values()]
    for part in parts:
        part[np.argmax(part)] = np.inf
    kept = np.ones(WEIGHTS, bool)
    kept[np.argsort(np.concatenate(parts), kind="stable")[:count]] = False
    split = np.split(kept, np.cumsum([p.size for p in parts])[:-1])
    return {
        n: torch.from_numpy(k.reshape(s.shape))
        for (n, s), k in zip(scores.items(), split, strict=True)
    }


def by_hand(make, steps):
    """Sanh et al.: the forward pass sees W * M; S falls by dL/d(W * M) * W, wherever M is 0 too."""
    module = Net(make)
    named = {n: p for n, p in module.named_parameters() if p.dim() > 1}
    dense = {n: p.detach().clone() for n, p in named.items()}
    scores = {n: torch.zeros_like(p) for n, p in dense.items()}
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in dense.items()}
    optimizer, batches, returned = make(module.parameters()), list(loader()), 0
    for step in range(steps):
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(dense[name] * masks[name])
        optimizer.zero_grad()
        module.loss(batches[step % len(batches)]).backward()
        for name, p in named.items():
            scores[name] -= p.grad * dense[name]
        if step in EVENTS:
            new = top(scores, round(EVENTS[step] * WEIGHTS))
            returned += sum(int((new[n] & ~masks[n]).sum()) for n in new)
            masks = new
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(dense[name])
        optimizer.step()
        dense = {n: p.detach().clone() for n, p in named.items()}
    return dense, scores, masks, returned


@pytest.mark.parametrize("make", [SGD, FAST])
def test_equals_a_manual_training_loop(make):
    pruning, module = soft(), Net(make)
    fit(module, pruning)
    dense, scores, masks, _ = by_hand(make, 16)
    assert zeros(module) == round(0.8 * WEIGHTS)
    held = pruning.pruner.criterion.state_dict()
    for name, weight in weights(module).items():
        assert torch.equal(pruning.masks[name], masks[name])
        torch.testing.assert_close(weight, dense[name] * masks[name], atol=1e-6, rtol=0)
        torch.testing.assert_close(held[name], scores[name], atol=1e-6, rtol=1e-5)


def test_reference_lets_pruned_weights_return():
    assert by_hand(FAST, 16)[3] > 0


def test_resumed_fit_is_the_uninterrupted_one(tmp_path):
    saves = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    whole, pruning = Net(SGD), soft()
    fit(whole, pruning, saves, enable_checkpointing=True)
    again, other = Net(SGD), soft()
    fit(again, other, ckpt_path=tmp_path / "step=8.ckpt")
    assert equal(copied(again), copied(whole))
    assert equal(other.pruner.criterion.state_dict(), pruning.pruner.criterion.state_dict())
