# SPDX-License-Identifier: MIT
"""Order and broadcast of suite hooks."""

from __future__ import annotations

import lightning.pytorch as pl

from regrow.callbacks.core.base import Callback, PruneEvent


def suite(trainer: pl.Trainer) -> list[Callback]:
    """The callbacks that hear of prune events."""
    return [c for c in trainer.callbacks if isinstance(c, Callback)]  # type: ignore[attr-defined]


def broadcast_event(trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent) -> None:
    """Tells every callback of the suite of an event."""
    for callback in suite(trainer):
        callback.on_prune_event(trainer, pl_module, event)


def ordered(trainer: pl.Trainer) -> list[Callback]:
    """The suite's callbacks by precedence, then by name."""
    return sorted(suite(trainer), key=lambda callback: (callback.priority, callback.state_key))
