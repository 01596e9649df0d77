# SPDX-License-Identifier: MIT
"""Gradients masked right after a manual backward pass, so that clipping sees live ones."""

from __future__ import annotations

import lightning.pytorch as pl

from regrow.callbacks.access import PrunerAccess
from regrow.callbacks.base import Callback, suite
from regrow.callbacks.refusals import waits_for_gradients


class MaskedBackward(PrunerAccess):
    """Masks gradients as soon as `manual_backward` has made them.

    Under manual optimisation a module clips by itself, before any hook of the step: a norm would
    count pruned weights too. Where a callback looks at gradients (a criterion, growth) they stay
    dense until the step, and that norm counts all of them.
    """

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not pl_module.automatic_optimization and not any(map(_looks, suite(trainer))):
            self.pruner.enforcer.gradients()


def _looks(callback: Callback) -> bool:
    """Whether a callback of the suite asks for dense gradients."""
    if isinstance(callback, PrunerAccess) and waits_for_gradients(callback.pruner):
        return True
    return type(callback).on_dense_gradients is not Callback.on_dense_gradients
