# SPDX-License-Identifier: MIT
"""Call the suite's hooks on all callbacks of a Trainer, in order of priority."""

from __future__ import annotations

from regrow.callbacks.core.base import Callback, PruneEvent, PrunerOwner
from regrow.callbacks.core.consistency import check_ranks_agree
from regrow.pruning.state import HistoryEntry
from regrow.utils.lightning_classes import pl


def suite_callbacks(trainer: pl.Trainer) -> list[Callback]:
    """The suite's callbacks in the Trainer's order, each followed by its children.

    They are looked up at each use, because others, such as learning-rate finders, take them out
    of the Trainer's list and put them back.
    """
    found: list[Callback] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Callback):
            found += [c for c in (callback, *callback.children) if c not in found]
    return found


def add_children(trainer: pl.Trainer, parent: Callback) -> None:
    """Insert a callback's children behind it in the Trainer's list: Lightning calls them.

    Lightning iterates over this list in `setup`, so the children's `setup` comes next.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if parent in callbacks:
        at = callbacks.index(parent) + 1
        callbacks[at:at] = [child for child in parent.children if child not in callbacks]


def callbacks_overriding(trainer: pl.Trainer, hook: str) -> list[Callback]:
    """The callbacks that override a hook, by priority, then by name."""
    idle = getattr(Callback, hook)
    found = [c for c in suite_callbacks(trainer) if getattr(type(c), hook) is not idle]
    return sorted(found, key=lambda callback: (callback.priority, callback.state_key))


class SuiteEvents:
    """Connects a session to the other callbacks and ranks of its fit."""

    def __init__(self, trainer: pl.Trainer, owner: PrunerOwner) -> None:
        self._trainer, self._owner = trainer, owner

    def allows(self) -> bool:
        trainer, owner = self._trainer, self._owner
        return all(callback.allows_event(trainer, owner) for callback in suite_callbacks(trainer))

    def before(self) -> None:
        for callback in suite_callbacks(self._trainer):
            callback.before_prune_event(self._trainer, self._trainer.lightning_module, self._owner)

    def after(self, entry: HistoryEntry, before: float) -> None:
        """Compare the masks of all ranks, then call `on_prune_event` on all callbacks."""
        self.check_ranks(f"the event at step {entry['step']}")
        owner = self._owner
        event = PruneEvent(owner, entry["step"], entry["epoch"], before, owner.sparsity, entry)
        for callback in suite_callbacks(self._trainer):
            callback.on_prune_event(self._trainer, self._trainer.lightning_module, event)

    def check_ranks(self, when: str) -> None:
        check_ranks_agree(self._trainer, self._owner.pruner.enforcer, when)
