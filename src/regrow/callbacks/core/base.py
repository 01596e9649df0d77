# SPDX-License-Identifier: MIT
"""Callback with the hooks and capability flags of this suite, and PruneEvent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import lightning.pytorch as pl
from torch.optim import Optimizer

from regrow.channels.cut.channel_cut import ChannelCut
from regrow.pruning.base import BasePruner
from regrow.pruning.state import HistoryEntry
from regrow.schedules.progress import Progress


class PrunerOwner(Protocol):
    """What other callbacks use of the callback whose masks change."""

    @property
    def pruner(self) -> BasePruner: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def sparsity(self) -> float: ...
    @property
    def history(self) -> list[HistoryEntry]: ...


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

    pruner: PrunerOwner
    step: int
    epoch: int
    before: float
    after: float
    entry: HistoryEntry


class Callback(pl.Callback):
    """A Lightning callback with further hooks around prune events.

    Attributes:
        priority: Callbacks with a lower number run first in `on_suite_batch_start`.
        children: Callbacks that come and go with this one: they are put right behind it into the
            Trainer's list, so that Lightning calls and saves them too.
        needs_whole_parameters: Whether it cannot work with sharded parameters.
        constant_sparsity: Whether the sparsity is the same from the first step to the last.
        needs_rising_sparsity: Whether it acts on events that prune further.
        restores_weights: Whether it sets weights back to an earlier step.
        rewinds: Whether it is a `Rewind`.
        cuts_channels: Whether it prunes channels.
        changes_shapes: Whether it cuts channels out of parameters.
        learns_masks: Whether its masks are trained.
        tracks_gradients: Whether it keeps a statistic of each weight from step to step.
        soft: Whether pruned weights keep training under the masks.
    """

    priority = 0
    children: tuple[Callback, ...] = ()
    needs_whole_parameters = False
    constant_sparsity = False
    needs_rising_sparsity = False
    restores_weights = False
    rewinds = False
    cuts_channels = False
    changes_shapes = False
    learns_masks = False
    tracks_gradients = False
    soft = False

    @property
    def keeps_dense_copy(self) -> bool:
        """Whether weights have other values within an optimizer step than outside of it."""
        return False

    @property
    def settled(self) -> bool:
        """Whether nothing is pending that could take the last event back."""
        return True

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each batch, by priority whatever the order of the Trainer's list."""

    def allows_event(self, trainer: pl.Trainer, pruner: PrunerOwner) -> bool:
        """Whether a planned event may happen now; if not, it is asked again at the next step."""
        return True

    def before_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: PrunerOwner
    ) -> None:
        """Called before a planned event that all callbacks allow."""

    def on_dense_gradients(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Called on dense, unscaled, unclipped gradients, before pruning callbacks mask them."""

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        """Called on every callback of the suite after a pruner changed its masks."""

    def on_compact(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: ChannelCut
    ) -> None:
        """Called after channels were cut out of the module within a fit: shapes have changed."""


def waits_for_gradients(pruner: BasePruner) -> bool:
    """Whether events happen within the optimizer step, because they rank by its gradients."""
    return pruner.needs_gradients or pruner.collects_gradients


def as_sparse(pruner: BasePruner, sparsity: float, final: float) -> bool:
    """Whether a model has that sparsity, or had it before channels were cut out of it."""
    if pruner.state.sparsity_before_cut >= sparsity > 0:
        return True
    return pruner.units(pruner.progress_towards(final)) >= pruner.units(sparsity)
