# SPDX-License-Identifier: MIT
"""Averaged weights are masked before anybody looks at them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from regrow.callbacks.access import PrunerAccess
from regrow.callbacks.averaging import Averages


class MaskedAverages(PrunerAccess):
    """Masks what EMA and SWA average: at validation, in checkpoints, in the final model.

    Masks change at events, and averages follow there; here only what an averaging rule of a user's
    own made of two zeros is made zero again.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._averages = Averages(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mask_averages()  # it takes the module's place when the epoch starts

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._mask_averages()  # in place: the checkpoint may hold its tensors already

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mask_averages()
        self.pruner.enforcer.weights()  # the average may have gone into the module already

    def _mask_averages(self) -> None:
        if self._pruner is not None:
            self._averages.mask(self._pruner.enforcer)
