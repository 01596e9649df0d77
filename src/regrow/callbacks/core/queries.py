# SPDX-License-Identifier: MIT
"""All pruners of a trainer; target reached? settled?."""

from __future__ import annotations

import lightning.pytorch as pl

from regrow.callbacks.core.dispatch import Dispatcher
from regrow.callbacks.core.pruning_callback import PruningCallback, pruning_callbacks
from regrow.utils.errors import ConfigError


def pruners(trainer: pl.Trainer) -> list[PruningCallback]:
    """The pruning callbacks of a Trainer, ordered by name."""
    return sorted(pruning_callbacks(trainer), key=lambda callback: callback.state_key)


def no_event_pending(trainer: pl.Trainer) -> bool:
    """Whether nothing is pending that could take the last event back."""
    return all(callback.settled for callback in Dispatcher.of(trainer).callbacks)


def all_schedules_done(trainer: pl.Trainer) -> bool:
    """Whether every pruning callback has had all its planned events, and they are settled."""
    return no_event_pending(trainer) and all(callback.reached for callback in pruners(trainer))


def all_at_target(trainer: pl.Trainer) -> bool:
    """Whether every pruning callback is as sparse as it will be, and that is settled.

    Of a cyclic plan this is the last sparse phase, whether or not a dense one follows.
    """
    return no_event_pending(trainer) and all(callback.at_target for callback in pruners(trainer))


def check_has_pruner(trainer: pl.Trainer, callback: pl.Callback, stage: str) -> None:
    """Check that the fit has a pruning callback, which `callback` needs.

    Raises:
        ConfigError: If the Trainer has no pruning callback.
    """
    if stage == "fit" and not pruners(trainer):
        raise ConfigError(
            f"{type(callback).__name__} needs a pruning callback beside it: put one, such as "
            "MagnitudePruning(0.9), into the Trainer's callbacks too"
        )
