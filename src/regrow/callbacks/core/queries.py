# SPDX-License-Identifier: MIT
"""Questions about all pruning callbacks of a Trainer: are targets reached, is an event pending?"""

from __future__ import annotations

from regrow.callbacks.core.dispatch import suite_callbacks
from regrow.callbacks.core.pruning_callback import PruningCallback, pruning_callbacks
from regrow.utils.errors import ConfigError
from regrow.utils.lightning_classes import pl


def pruners(trainer: pl.Trainer) -> list[PruningCallback]:
    """The pruning callbacks of a Trainer, sorted by name."""
    return sorted(pruning_callbacks(trainer), key=lambda callback: callback.state_key)


def no_event_pending(trainer: pl.Trainer) -> bool:
    """Whether no callback may still roll the last event back."""
    return all(callback.settled for callback in suite_callbacks(trainer))


def all_schedules_done(trainer: pl.Trainer) -> bool:
    """Whether all pruning callbacks have had all planned events, and none may be rolled back."""
    return no_event_pending(trainer) and all(
        callback.schedule_done for callback in pruners(trainer)
    )


def all_at_target(trainer: pl.Trainer) -> bool:
    """Whether all pruning callbacks have pruned as far as planned, and nothing may be rolled back.

    For a cyclic plan this is its last sparse phase, whether or not a dense one follows.
    """
    return no_event_pending(trainer) and all(callback.at_target for callback in pruners(trainer))


def check_has_pruner(trainer: pl.Trainer, callback: pl.Callback, stage: str) -> None:
    """Check that a fit has a pruning callback, which `callback` needs."""
    if stage == "fit" and not pruners(trainer):
        raise ConfigError(
            f"{type(callback).__name__} needs a pruning callback: add one, such as "
            "MagnitudePruning(0.9), to the Trainer's callbacks"
        )
