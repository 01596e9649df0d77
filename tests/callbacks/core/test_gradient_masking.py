# SPDX-License-Identifier: MIT
"""Gradients in the fit: clip norms count kept weights only, NaN at pruned places vanishes."""

import numpy as np
import pytest
import torch
from tiny_fits import ADAM, SGD, WEIGHTS, Net, copied, fit, zeros

from regrow import MagnitudePruning, OneShot, Table


class Clipped(Net):
    """Record dense gradients, and gradients after clipping."""

    def __init__(self, *args, scale=1.0):
        super().__init__(*args)
        self.dense, self.after = [], []

    def on_after_backward(self):
        self.dense.append([p.grad.numpy().copy() for p in self.parameters()])

    def configure_gradient_clipping(self, *args, **kw):
        super().configure_gradient_clipping(*args, **kw)
        self.after.append([p.grad.numpy().copy() for p in self.parameters()])


@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_the_clip_norm_counts_live_weights_only(clip):
    module, pruning = Clipped(), MagnitudePruning(0.8, schedule=OneShot(0))
    fit(module, pruning, gradient_clip_val=clip, max_epochs=1)
    kept = [
        pruning.masks[name].numpy() if name in pruning.masks else np.ones(p.shape, bool)
        for name, p in module.named_parameters()
    ]
    assert sum((~k).sum() for k in kept) == round(0.8 * WEIGHTS)
    for dense, after in zip(module.dense, module.after, strict=True):
        assert any(g[~k].any() for g, k in zip(dense, kept, strict=True)), "these are dense"
        live = [np.where(k, g, 0) for k, g in zip(kept, dense, strict=True)]
        norm = np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in live))
        factor = min(1.0, clip / (norm + 1e-6))
        for expected, found in zip(live, after, strict=True):
            np.testing.assert_allclose(found, expected * factor, rtol=1e-5)


class Poisoned(Net):
    """Puts a bad value at pruned places into gradients after each backward pass."""

    poison = None

    def on_after_backward(self):
        pruning = self.trainer.callbacks[0]
        for name, p in self.named_parameters():
            if self.poison is not None and name in pruning.masks:
                p.grad[~pruning.masks[name]] = self.poison


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), -0.0])
@pytest.mark.parametrize("make", [SGD, ADAM])
def test_gradients_of_pruned_weights_change_nothing(make, poison):
    found = []
    for value in (None, poison):
        module = Poisoned(make)
        module.poison = value
        pruning = MagnitudePruning(0.8, schedule=Table({"2it": 0.5, "6it": 0.8}))
        fit(module, pruning, gradient_clip_val=0.5)
        assert zeros(module) == round(0.8 * WEIGHTS)
        found.append(copied(module))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_module_that_sets_gradients_to_none_skips_the_step():
    class Skips(Net):
        def on_before_optimizer_step(self, optimizer):
            for p in self.parameters():
                p.grad = None

    module = Skips()
    before = copied(module)
    fit(module, MagnitudePruning(0.5, schedule=OneShot("3it")), max_epochs=1)
    assert zeros(module) == WEIGHTS // 2
    assert all(
        torch.equal(p[p != 0], before[name][p != 0]) for name, p in module.state_dict().items()
    )
