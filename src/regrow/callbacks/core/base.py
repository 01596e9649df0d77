# SPDX-License-Identifier: MIT
"""Callback, PruneEvent, capability flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from torch.optim import Optimizer

from regrow.channels.cut.channel_cut import ChannelCut
from regrow.pruning.state import HistoryEntry

if TYPE_CHECKING:
    from regrow.callbacks.core.session import PrunerAccess


@dataclass(frozen=True)
class PruneEvent:
    """One change of masks.

    Attributes:
        pruner: The callback whose masks changed.
        step: `trainer.global_step` at which it happened.
        epoch: `trainer.current_epoch` then.
        before: Sparsity before.
        after: Sparsity after.
        entry: The pruner's history entry.
    """

    pruner: PrunerAccess
    step: int
    epoch: int
    before: float
    after: float
    entry: HistoryEntry


class Callback(pl.Callback):
    """A Lightning callback that also hears of prune events.

    Attributes:
        needs_wholes: Whether it works with whole parameters alone, not with shards of them.
        constant_sparsity: Whether the sparsity is the same from the first step to the last.
    """

    needs_whole_parameters = False
    constant_sparsity = False

    priority = 0  # the lower, the earlier its turn

    @property
    def settled(self) -> bool:
        """Whether nothing is pending that could take the last event back."""
        return True

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each batch, in an order that the Trainer's list does not change."""

    def allows_event(self, trainer: pl.Trainer, pruner: PrunerAccess) -> bool:
        """Whether a planned event may happen now; it is asked again at the next step if not."""
        return True

    def before_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: PrunerAccess
    ) -> None:
        """Called before a planned event that all allow."""

    def on_dense_gradients(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Called on dense, unscaled, unclipped gradients, before pruning callbacks act on them."""

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        """Called on every callback of the suite after a pruner changed its masks."""

    def on_compact(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: ChannelCut
    ) -> None:
        """Called after channels were cut out of the module within a fit: shapes have changed."""
