# SPDX-License-Identifier: MIT
"""Clipping acts on gradients of kept weights, by norm and by value; compared with NumPy."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from tiny_fits import ADAM, BATCHES, WEIGHTS, Net, fit

from regrow import MagnitudePruning, OneShot


def arrays(module):
    return [p.grad.numpy().astype(np.float64) for p in module.parameters()]


def clipped(gradients, kept, clip, how):
    """The clipped gradients."""
    live = [np.where(k, g, 0) for k, g in zip(kept, gradients, strict=True)]
    if how == "value":
        return [np.clip(g, -clip, clip) for g in live]
    norm = np.sqrt(sum(np.square(g).sum() for g in live))
    return [g * min(1.0, clip / (norm + 1e-6)) for g in live]


class Automatic(Net):
    """Remembers the gradients of each step before and after clipping."""

    def __init__(self):
        super().__init__(ADAM)
        self.dense, self.after = [], []

    def configure_gradient_clipping(self, *args, **kw):
        super().configure_gradient_clipping(*args, **kw)
        self.after.append(arrays(self))


class Dense(Callback):
    """Remembers the gradients of each backward pass: put it before the pruning callback."""

    def on_after_backward(self, trainer, pl_module):
        pl_module.dense.append(arrays(pl_module))


class Manual(Automatic):
    """The same, clipping by itself."""

    def __init__(self, clip, how):
        super().__init__()
        self.automatic_optimization = False
        self.clip = {"gradient_clip_val": clip, "gradient_clip_algorithm": how}

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, **self.clip)
        self.after.append(arrays(self))
        optimizer.step()


def check(module, pruning, clip, how, soft=False):
    kept = [
        pruning.masks[name].numpy() if name in pruning.masks and not soft else np.ones(p.shape)
        for name, p in module.named_parameters()
    ]
    assert len(module.after) == len(module.dense) == BATCHES
    changed = 0
    for dense, after in zip(module.dense, module.after, strict=True):
        assert any(g[k == 0].any() for g, k in zip(dense, kept, strict=True)) != soft
        expected = clipped(dense, kept, clip, how)
        for one, other, raw in zip(expected, after, dense, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9)
            changed += int((other != raw).sum())
    assert changed, "nothing was clipped"


def one_shot(**kw):
    return MagnitudePruning(0.8, schedule=OneShot(0), **kw)


@pytest.mark.parametrize(("how", "clip"), [("norm", 0.05), ("value", 0.01)])
def test_automatic_clipping_counts_kept_weights(how, clip):
    module, pruning = Automatic(), one_shot()
    fit(module, Dense(), pruning, gradient_clip_val=clip, gradient_clip_algorithm=how, max_epochs=1)
    assert pruning.masks.pruned == round(0.8 * WEIGHTS)
    check(module, pruning, clip, how)


@pytest.mark.parametrize(("how", "clip"), [("norm", 0.05), ("value", 0.01)])
def test_manual_clipping_counts_kept_weights(how, clip):
    module, pruning = Manual(clip, how), one_shot()
    fit(module, Dense(), pruning, max_epochs=1)
    check(module, pruning, clip, how)


def test_soft_pruning_clips_the_gradients_of_dense_values():
    module, pruning = Automatic(), one_shot(soft=True)
    fit(module, Dense(), pruning, gradient_clip_val=0.05, max_epochs=1)
    check(module, pruning, 0.05, "norm", soft=True)


@pytest.mark.parametrize(("how", "clip"), [("norm", 0.05), ("value", 0.01)])
def test_scaled_gradients_are_clipped_unscaled(how, clip):
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    module, pruning = Automatic(), one_shot()
    fit(
        module,
        Dense(),
        pruning,
        plugins=precision,
        gradient_clip_val=clip,
        gradient_clip_algorithm=how,
        max_epochs=1,
    )
    module.dense = [[g / 256 for g in gradients] for gradients in module.dense]
    check(module, pruning, clip, how)


def test_accumulated_gradients_are_clipped_by_the_norm_of_their_sum():
    module, pruning = Automatic(), one_shot()
    fit(module, Dense(), pruning, accumulate_grad_batches=4, gradient_clip_val=0.05, max_epochs=2)
    module.dense = module.dense[3::4] * 2  # sums stand at each window's last batch
    module.after = module.after * 2
    check(module, pruning, 0.05, "norm")
