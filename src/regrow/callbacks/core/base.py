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


@dataclass(frozen=True)
class PruneEvent:
    """One change of masks."""

    pruner: PrunerOwner  # the callback whose masks changed
    step: int  # trainer.global_step then
    epoch: int  # trainer.current_epoch then
    before: float  # sparsity before the event
    after: float  # sparsity after it
    entry: HistoryEntry  # of the pruner


class Callback(LightningCallback):
    """A Lightning callback with additional hooks around prune events."""

    priority = 0  # lower ones come first in `on_suite_batch_start`
    children: tuple[Callback, ...] = ()  # added to the Trainer right behind this one
    needs_whole_parameters = False  # sharded parameters are not supported
    loads_when_attached = False  # its state is loaded by `attach` of the callback it belongs to
    constant_sparsity = False  # the same sparsity from the first step to the last
    needs_rising_sparsity = False  # acts on events that prune further
    searches_sparsity = False  # changes the sparsity of events
    uses_threshold = False  # events have thresholds instead of sparsities
    restores_weights = False  # sets weights back to an earlier step
    rewinds = False  # is a `Rewind`
    cuts_channels = False  # prunes channels
    changes_shapes = False  # cuts channels out of parameters
    learns_masks = False  # masks are trained
    tracks_gradients = False  # the criterion keeps a statistic per weight across steps
    soft = False  # pruned weights keep training under the masks

    @property
    def keeps_dense_copy(self) -> bool:
        """Whether weights differ between inside and outside of an optimizer step."""
        return False

    @property
    def settled(self) -> bool:
        """Whether the callback can no longer roll the last event back."""
        return True

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Clean up as at the end; Lightning does not call `teardown` after an error."""
        self.teardown(trainer, pl_module, "fit")

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


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether a step has any gradient; it has none if the batch was skipped."""
    groups = optimizer.param_groups
    return any(parameter.grad is not None for group in groups for parameter in group["params"])


def as_sparse(pruner: BasePruner, sparsity: float, final: float, own: Mapping[str, float]) -> bool:
    """Whether a model has that sparsity, or had it before channels were cut out.

    `own` are the sparsities that go with it of layers with a separate target.
    """
    if pruner.state.sparsity_before_cut >= sparsity > 0:
        return True
    shared = pruner.units(pruner.progress_towards(final)) >= pruner.units(sparsity)
    return shared and pruner.layer_progress(own) == 1
