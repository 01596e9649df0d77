# SPDX-License-Identifier: MIT
"""Base class of the suite's callbacks: hooks around prune events, and capability flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch.optim import Optimizer

from regrow.channels.cut.channel_cut import ChannelCut
from regrow.pruning.base import BasePruner
from regrow.pruning.state import HistoryEntry
from regrow.schedules.progress import Progress
from regrow.schedules.time import Timeline
from regrow.utils.lightning_classes import LightningCallback, pl


class PrunerOwner(Protocol):
    """The part of a pruning callback that other callbacks use."""

    @property
    def pruner(self) -> BasePruner: ...
    @property
    def progress(self) -> Progress: ...
    @property
    def sparsity(self) -> float: ...
    @property
    def history(self) -> list[HistoryEntry]: ...


class FitClock(Protocol):
    """The part of a clock that a session uses; see `regrow.callbacks.core.clock.Clock`."""

    @property
    def dry_run(self) -> bool: ...
    def current_step(self) -> int: ...
    def start_step(self) -> tuple[int, int]: ...
    def timeline(self, epochs: Mapping[int, int]) -> Timeline: ...
    def position(self) -> tuple[int, int]: ...
    def why_missed(self, step: int, epochs: Mapping[int, int]) -> str: ...


class Events(Protocol):
    """What a session calls around its events; see `SuiteEvents`."""

    def allows(self) -> bool: ...
    def before(self) -> None: ...
    def after(self, entry: HistoryEntry, before: float) -> None: ...
    def check_ranks(self, when: str) -> None: ...


@dataclass(frozen=True)
class PruneEvent:
    """One change of masks.

    Attributes:
        pruner: The callback whose masks changed.
        step: `trainer.global_step` when it happened.
        epoch: `trainer.current_epoch` when it happened.
        before: Sparsity before the event.
        after: Sparsity after it.
        entry: The pruner's history entry.
    """

    pruner: PrunerOwner
    step: int
    epoch: int
    before: float
    after: float
    entry: HistoryEntry


class Callback(LightningCallback):
    """A Lightning callback with additional hooks around prune events.

    Attributes:
        priority: Callbacks with a lower number run first in `on_suite_batch_start`.
        children: Callbacks that are added to the Trainer right behind this one.
        needs_whole_parameters: Whether it does not support sharded parameters.
        constant_sparsity: Whether the sparsity is the same from the first step to the last.
        needs_rising_sparsity: Whether it acts on events that prune further.
        searches_sparsity: Whether it changes the sparsity of events.
        uses_threshold: Whether its events have thresholds instead of sparsities.
        restores_weights: Whether it sets weights back to an earlier step.
        rewinds: Whether it is a `Rewind`.
        cuts_channels: Whether it prunes channels.
        changes_shapes: Whether it cuts channels out of parameters.
        learns_masks: Whether its masks are trained.
        tracks_gradients: Whether its criterion keeps a statistic per weight across steps.
        soft: Whether pruned weights keep training under the masks.
    """

    priority = 0
    children: tuple[Callback, ...] = ()
    needs_whole_parameters = False
    constant_sparsity = False
    needs_rising_sparsity = False
    searches_sparsity = False
    uses_threshold = False
    restores_weights = False
    rewinds = False
    cuts_channels = False
    changes_shapes = False
    learns_masks = False
    tracks_gradients = False
    soft = False

    @property
    def keeps_dense_copy(self) -> bool:
        """Whether weights differ between inside and outside of an optimizer step."""
        return False

    @property
    def settled(self) -> bool:
        """Whether the callback can no longer roll the last event back."""
        return True

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before each batch, by priority instead of the Trainer's order."""

    def on_suite_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called at an epoch's first batch, after all hooks of its start, and after a resume."""

    def allows_event(self, trainer: pl.Trainer, pruner: PrunerOwner) -> bool:
        """Whether a planned event may happen now; if not, it is tried again at the next step."""
        return True

    def before_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: PrunerOwner
    ) -> None:
        """Called before a planned event that all callbacks allow."""

    def on_dense_gradients(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Called on dense, unscaled, unclipped gradients, before they are masked."""

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        """Called on all callbacks of the suite after masks changed."""

    def on_compact(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: ChannelCut
    ) -> None:
        """Called after channels were cut out of the module within a fit."""


def waits_for_gradients(pruner: BasePruner) -> bool:
    """Whether events happen within the optimizer step, because they rank by its gradients."""
    return pruner.needs_gradients or pruner.collects_gradients


def as_sparse(pruner: BasePruner, sparsity: float, final: float) -> bool:
    """Whether a model has that sparsity, or had it before channels were cut out."""
    if pruner.state.sparsity_before_cut >= sparsity > 0:
        return True
    return pruner.units(pruner.progress_towards(final)) >= pruner.units(sparsity)
