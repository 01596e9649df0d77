# SPDX-License-Identifier: MIT
"""Call the suite's hooks on all callbacks of a Trainer, in order of priority."""

from __future__ import annotations

from typing import ClassVar
from weakref import WeakKeyDictionary, ref

from regrow.callbacks.core.base import Callback, PruneEvent, PrunerOwner
from regrow.callbacks.core.consistency import check_ranks_agree
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.pruning.state import HistoryEntry
from regrow.utils.lightning_classes import pl


class Dispatcher:
    """Calls the suite's hooks on the callbacks of one Trainer; see `of`.

    They are looked up at each use, because others, such as learning-rate finders, take them out
    of the Trainer's list and put them back.
    """

    _all: ClassVar[WeakKeyDictionary[pl.Trainer, Dispatcher]] = WeakKeyDictionary()

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = ref(trainer)

    @classmethod
    def of(cls, trainer: pl.Trainer) -> Dispatcher:
        """The dispatcher of a Trainer; one per Trainer."""
        found = cls._all.get(trainer)
        if found is None:
            found = cls._all[trainer] = cls(trainer)
        return found

    @property
    def trainer(self) -> pl.Trainer:
        trainer = self._trainer()
        assert trainer is not None
        return trainer

    @property
    def callbacks(self) -> list[Callback]:
        """The suite's callbacks in the Trainer's order, each followed by its children."""
        found: list[Callback] = []
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Callback):
                found += [c for c in (callback, *callback.children) if c not in found]
        return found

    def add_children(self, parent: Callback) -> None:
        """Insert a callback's children behind it in the Trainer's list: Lightning calls them.

        Lightning iterates over this list in `setup`, so the children's `setup` comes next.
        """
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        if parent in callbacks:
            at = callbacks.index(parent) + 1
            callbacks[at:at] = [child for child in parent.children if child not in callbacks]

    def overriding(self, hook: str) -> list[Callback]:
        """The callbacks that override a hook, by priority, then by name."""
        idle = getattr(Callback, hook)
        found = [c for c in self.callbacks if getattr(type(c), hook) is not idle]
        return sorted(found, key=lambda callback: (callback.priority, callback.state_key))

    def broadcast(self, event: PruneEvent) -> None:
        """Call `on_prune_event` on all callbacks."""
        trainer = self.trainer
        for callback in self.callbacks:
            callback.on_prune_event(trainer, trainer.lightning_module, event)

    def broadcast_cut(self, source: Callback, plan: ChannelCut) -> None:
        """Call `on_compact` on all callbacks but the one that has cut."""
        trainer = self.trainer
        for callback in self.callbacks:
            if callback is not source:
                callback.on_compact(trainer, trainer.lightning_module, plan)


class SuiteEvents:
    """Connects a session to the other callbacks and ranks of its fit."""

    def __init__(self, trainer: pl.Trainer, owner: PrunerOwner) -> None:
        self._trainer, self._owner = trainer, owner
        self._dispatcher = Dispatcher.of(trainer)

    def allows(self) -> bool:
        """Whether all callbacks allow a due event now."""
        callbacks = self._dispatcher.callbacks
        return all(callback.allows_event(self._trainer, self._owner) for callback in callbacks)

    def before(self) -> None:
        """Call `before_prune_event` on all callbacks."""
        for callback in self._dispatcher.callbacks:
            callback.before_prune_event(self._trainer, self._trainer.lightning_module, self._owner)

    def after(self, entry: HistoryEntry, before: float) -> None:
        """Compare the masks of all ranks, then call `on_prune_event` on all callbacks."""
        self.check_ranks(f"the event at step {entry['step']}")
        event = PruneEvent(
            self._owner, entry["step"], entry["epoch"], before, self._owner.sparsity, entry
        )
        self._dispatcher.broadcast(event)

    def check_ranks(self, when: str) -> None:
        """Check that all ranks hold the same masks."""
        check_ranks_agree(self._trainer, self._owner.pruner.enforcer, when)
