# SPDX-License-Identifier: MIT
"""Who acts first within a batch, whatever the order of the callbacks in the Trainer's list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from regrow.callbacks.access import PrunerAccess
from regrow.callbacks.base import Callback, suite


class TakesTurns(PrunerAccess):
    """The first pruning callback of the list lets all of the suite take their turns."""

    precedence = 2  # after budgets and regrowth
    _turns: Sequence[Callback] = ()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if leads(trainer, self):
            for callback in self._turns:
                callback.take_turn(trainer, pl_module, batch, batch_idx)


def leads(trainer: pl.Trainer, callback: Callback) -> bool:
    """Whether a callback is the first pruning callback of the Trainer's list."""
    first = next(c for c in trainer.callbacks if isinstance(c, TakesTurns))  # type: ignore[attr-defined]
    return first is callback


def in_turn(trainer: pl.Trainer) -> list[Callback]:
    """The suite's callbacks by precedence, then by name."""
    return sorted(suite(trainer), key=lambda callback: (callback.precedence, callback.state_key))
