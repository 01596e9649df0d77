# SPDX-License-Identifier: MIT
"""PruningSession: pruner + progress + clock of one fit, no Lightning hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from regrow.callbacks.core.averaging import Averages
from regrow.callbacks.core.base import Callback, PruneEvent
from regrow.callbacks.core.clock import Clock
from regrow.callbacks.core.compatibility import check_no_dense_copy, check_weights_not_swapped
from regrow.callbacks.core.consistency import check_ranks_agree
from regrow.callbacks.core.dispatch import broadcast_event
from regrow.callbacks.core.pruner_types import AnyPruner
from regrow.channels.config import ChannelConfig
from regrow.io.checkpoints import check_checksums, read_checkpoint
from regrow.io.integrity import verify_digest
from regrow.masks.masks import Masks, check_weights_masked
from regrow.pruning.config import PruningConfig
from regrow.pruning.freezing import TrainSpec
from regrow.pruning.growth import GrowthCriterion
from regrow.pruning.initializers import Initializer
from regrow.pruning.pruner import Pruner
from regrow.pruning.state import HistoryEntry, KeepRemoved
from regrow.pruning.transaction import Transaction
from regrow.schedules.progress import Progress
from regrow.utils.errors import StateError


class PrunerAccess(Callback):
    """A callback with a pruner: masks, sparsity, history, and changes on demand.

    Args:
        method: How to rank and group.
        keep_removed: Whether removed values go to the vault.
        soft: Whether dense values go on learning beneath the masks.
    """

    def __init__(
        self, method: PruningConfig | ChannelConfig, keep_removed: KeepRemoved, soft: bool = False
    ) -> None:
        super().__init__()
        self.method = method.validated()
        self.keep_removed = keep_removed
        self.soft = soft
        self.progress = Progress()
        self.transaction = Transaction()  # of the fit; the pruner has its own
        self._pruner: AnyPruner | None = None
        self._clock: Clock | None = None
        self._averages = Averages()
        # Lightning asks for it around every hook
        self._key = self._generate_state_key(
            include=self.method.include, exclude=self.method.exclude
        )

    @property
    def state_key(self) -> str:
        return self._key

    @property
    def pruner(self) -> AnyPruner:
        """The pruner; there is one once a fit has begun or a model was attached."""
        if self._pruner is None:
            raise StateError(
                f"{type(self).__name__} has seen no model yet: call trainer.fit, or "
                "attach(model, ckpt) for a model loaded outside a fit"
            )
        return self._pruner

    @property
    def masks(self) -> Masks:
        """The masks by parameter name, made when asked."""
        return self.pruner.masks

    @property
    def sparsity(self) -> float:
        """The masked fraction of the prunable weights now."""
        return 0.0 if self._pruner is None else self._pruner.sparsity

    @property
    def densities(self) -> dict[str, float]:
        """The kept fraction of each parameter now."""
        return self.pruner.densities

    @property
    def changes_between_events(self) -> bool:
        """Whether sparsity changes between events too."""
        return False

    @property
    def target(self) -> float:
        """The sparsity that was last asked for."""
        return 0.0 if self._pruner is None else self._pruner.target

    @property
    def history(self) -> list[HistoryEntry]:
        """One dict an event."""
        return [] if self._pruner is None else self._pruner.history

    @property
    def keeps_dense_copy(self) -> bool:
        """Whether other values than those trained stand in the weights between two steps."""
        return self.soft

    @property
    def reached(self) -> bool:
        """Whether all planned events have happened."""
        return self.progress.started and self.progress.reached

    @property
    def at_target(self) -> bool:
        """Whether nothing is left to prune."""
        return self.reached

    def prune_to(self, sparsity: float) -> HistoryEntry:
        """Prunes now, beside the schedule; see `Pruner.prune_to`."""
        return self._change(lambda optimizers: self.pruner.prune_to(sparsity, optimizers))

    def unprune(self, names: Iterable[str] | str | None = None) -> HistoryEntry:
        """Puts removed values back to the bit; see `Pruner.unprune`.

        Within a fit the events still to come prune again.
        """
        return self._change(lambda optimizers: self.pruner.unprune(names, optimizers))

    def regrow(
        self,
        fraction: float | None = None,
        count: int | None = None,
        *,
        by: str | GrowthCriterion = "random",
        init: str | Initializer = "he",
        names: Iterable[str] | str | None = None,
        train: TrainSpec = "all",
    ) -> HistoryEntry:
        """Brings pruned weights back; see `Pruner.regrow`."""
        if self._clock is not None and train != "all":
            check_weights_not_swapped(self._clock.trainer)
        return self._change(
            lambda optimizers: self.pruner.regrow(
                fraction,
                count,
                by=by,
                init=init,
                names=names,
                train=train,
                optimizers=optimizers,
            )
        )

    def attach(self, model: nn.Module, ckpt: str | Path | None = None) -> None:
        """Takes a model outside a fit.

        Args:
            model: The module.
            ckpt: A Lightning checkpoint whose masks are taken; None carries over the present ones,
                if there are any.

        Raises:
            StateError: If the checkpoint has no masks of this callback, or they do not fit, naming
                the parameters.
        """
        state: Mapping[str, Any] | None = None
        if ckpt is not None:
            checkpoint = read_checkpoint(ckpt)
            state = self._own_state(checkpoint)
            self._whole_state(checkpoint, None)
            if state["pruner"] is None:
                raise StateError(f"{ckpt} was saved before {self.state_key} had seen a model")
        elif self._pruner is not None:
            check_no_dense_copy(self._pruner)
            state = self.state_dict()
        before, self._pruner = self._pruner, self._new_pruner(model)
        self._averages = Averages()
        try:
            if state is not None:
                self._adopt(state)
        except StateError:
            self._pruner = before
            raise

    def note_rollback(self, failed: float, lost: float | None) -> None:
        """Writes into the history that an event was taken back, and how much it had lost."""
        self.pruner.record_event("rollback", failed, lost=lost)
        self._where(self.history[-1])
        if self._clock is not None:
            check_ranks_agree(self._clock.trainer, self.pruner.enforcer, "a rollback")

    def _new_pruner(self, model: nn.Module) -> AnyPruner:
        assert isinstance(self.method, PruningConfig)
        return Pruner(model, self.method, keep_removed=self.keep_removed, soft=self.soft)

    def _own_state(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
        """This callback's state in a checkpoint, or an error that says what is there."""
        states: Mapping[str, Any] = checkpoint.get("callbacks") or {}
        if self.state_key not in states:
            raise StateError(
                f"the checkpoint has no masks of {self.state_key} (it has state of "
                f"{', '.join(map(repr, states)) or 'no callback'}): to prune a network that was "
                "trained without it, load the weights into the model and call fit without ckpt_path"
            )
        state: Mapping[str, Any] = states[self.state_key]
        return state

    def _whole_state(self, checkpoint: Mapping[str, Any], path: object) -> Mapping[str, Any] | None:
        """This callback's state, if there is one, in a checkpoint that is what was written."""
        check_checksums(path)
        state: Mapping[str, Any] | None = (checkpoint.get("callbacks") or {}).get(self.state_key)
        if state and state["pruner"] is not None:
            masks = verify_digest(state["pruner"])["masks"]
            check_weights_masked(masks, checkpoint.get("state_dict") or {})
        return state

    def _adopt(self, state: Mapping[str, Any]) -> None:
        self.pruner.load_state_dict(state["pruner"])
        if self._clock is not None:
            check_ranks_agree(self._clock.trainer, self.pruner.enforcer, "resuming")
        if state["progress"] is not None:
            self.progress.load_state_dict(state["progress"])

    def _change(self, change: Callable[[list[Optimizer]], HistoryEntry]) -> HistoryEntry:
        """Changes masks; within a fit with its optimizers, and the suite is told."""
        clock, enforcer = self._clock, self.pruner.enforcer
        masks = self._averages.masks(enforcer)
        if clock is None:
            entry = change([])
            self._averages.sync_changed(enforcer, masks)
            return entry
        trainer, before = clock.trainer, self.pruner.sparsity
        with self.transaction.guard(f"an event at step {int(trainer.global_step)}"):
            entry = change(trainer.optimizers)
            self.transaction.mark_started()  # masks changed, but listeners were not called yet
            self._averages.sync_changed(enforcer, masks)
            self._where(entry)
            check_ranks_agree(trainer, enforcer, f"the event at step {entry['step']}")
            event = PruneEvent(self, entry["step"], entry["epoch"], before, self.sparsity, entry)
            broadcast_event(trainer, trainer.lightning_module, event)
        return entry

    def _where(self, entry: HistoryEntry) -> None:
        """Adds step and epoch to a history entry that was made within a fit."""
        if self._clock is not None:
            trainer = self._clock.trainer
            entry |= {"step": int(trainer.global_step), "epoch": int(trainer.current_epoch)}
