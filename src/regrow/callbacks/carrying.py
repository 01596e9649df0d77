# SPDX-License-Identifier: MIT
"""What a pruning callback cannot do with what others, or other ranks, hold."""

from __future__ import annotations

import lightning.pytorch as pl

from regrow.callbacks.pruners import AnyPruner
from regrow.errors import ConfigError, StateError
from regrow.pruner import Pruner


def refuse_swapped(trainer: pl.Trainer) -> None:
    """Refuses to hold weights beside a callback that keeps other values for them.

    Raises:
        ConfigError: What is noted before a step and put back after it would be the wrong values.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if getattr(callback, "swaps", False):
            raise ConfigError(
                f"{type(callback).__name__} keeps dense values beside the weights of the network "
                "(soft=True, learned masks), and holding weights would write over them: write "
                "train='all'"
            )


def refuse_carried(pruner: AnyPruner) -> None:
    """Refuses to carry masks of sharded parameters from one model to another in memory.

    Raises:
        StateError: What was removed is gathered by the first rank alone.
    """
    if isinstance(pruner, Pruner) and pruner.shards.ranks is not None:
        raise StateError(
            "masks of sharded parameters are carried over by a checkpoint: save one, and call "
            "attach(model, ckpt)"
        )
