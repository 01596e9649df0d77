# SPDX-License-Identifier: MIT
"""Which callbacks cannot be combined: one table over capability flags."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import StochasticWeightAveraging

from regrow.callbacks.core.averaging import Averages
from regrow.callbacks.core.base import Callback
from regrow.callbacks.core.dispatch import suite
from regrow.callbacks.core.pruner_types import AnyPruner
from regrow.channels.pruner import ChannelPruner
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import ConfigError, StateError


def check_no_swa(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Refuses `StochasticWeightAveraging` beside a callback that takes weights back.

    Raises:
        ConfigError: Saying what to write.
    """
    if any(isinstance(c, StochasticWeightAveraging) for c in Averages(trainer).callbacks):
        name = type(callback).__name__
        raise ConfigError(
            f"{name} takes weights back to an earlier moment, where StochasticWeightAveraging "
            "cannot follow, which replaces the learning-rate schedule: write WeightAveraging(), "
            f"which averages all steps alike, or leave {name} out"
        )


def check_weights_not_swapped(trainer: pl.Trainer) -> None:
    """Refuses to hold weights beside a callback that keeps other values for them.

    Raises:
        ConfigError: What is noted before a step and put back after it would be the wrong values.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if getattr(callback, "keeps_dense_copy", False):
            raise ConfigError(
                f"{type(callback).__name__} keeps dense values beside the weights of the network "
                "(soft=True, learned masks), and holding weights would write over them: write "
                "train='all'"
            )


def check_no_dense_copy(pruner: AnyPruner) -> None:
    """Refuses to carry masks of sharded parameters from one model to another in memory.

    Raises:
        StateError: What was removed is gathered by the first rank alone.
    """
    if isinstance(pruner, Pruner) and pruner.shards.ranks is not None:
        raise StateError(
            "masks of sharded parameters are carried over by a checkpoint: save one, and call "
            "attach(model, ckpt)"
        )


def check_no_pending_event(pending: object) -> None:
    """Refuses to save between an event and its rewinding, which comes at the batch's end.

    Raises:
        StateError: As where the step between the two fails.
    """
    if pending is not None:
        raise StateError(
            "an event waits for its rewinding, which comes at this batch's end: save then; if the "
            "step failed, go on from the last checkpoint"
        )


def check_target_reachable(
    trainer: pl.Trainer, pruner: AnyPruner, start: float, final: float
) -> None:
    """Refuses a target that cannot be gone to, or not beside the Trainer's other pruners.

    Raises:
        ConfigError: What is pruned stays pruned; less than a weight is nothing to move in
            proportion to; dense values beneath soft masks are none under hard ones.
    """
    check_no_overlap(trainer, pruner)
    if (
        isinstance(pruner, Pruner)
        and pruner.layer_targets
        and final > 0
        and not pruner.units(final)
    ):
        raise ConfigError(
            f"sparsity={final:g} is less than one weight, and layers={pruner.layer_targets} move "
            "in proportion to it: write include=[...] with these layers, and their sparsity as "
            "sparsity"
        )
    if pruner.units(start) > pruner.units(final) > 0:
        raise ConfigError(
            f"the model has sparsity {start:.6g} already, sparsity={final:g} is less: ask for "
            "more, or bring weights back first (unprune, prune_to(0))"
        )


def check_no_overlap(trainer: pl.Trainer, pruner: AnyPruner) -> None:
    """Refuses soft pruning of weights that another callback prunes too.

    Raises:
        ConfigError: Within a step dense values stand where the other's masks say zero, and weight
            decay turns them into moments.
    """
    own = {id(target.parameter): target.name for target in pruner.targets}
    for callback in suite(trainer):
        other = getattr(callback, "_pruner", None)
        if not isinstance(other, Pruner | ChannelPruner) or other is pruner:
            continue
        if not (pruner.soft or other.soft):
            continue
        shared = [own[id(t.parameter)] for t in other.targets if id(t.parameter) in own]
        if shared:
            raise ConfigError(
                f"soft=True lets {', '.join(shared[:3])} go on learning beneath masks, and another "
                "pruning callback masks them too: write exclude=[...] in one of the two"
            )


def check_rising_sparsity(trainer: pl.Trainer, callback: Callback) -> None:
    """Refuses a callback that answers rising sparsity where it stands still.

    Raises:
        ConfigError: It would never act, or take the first masks back.
    """
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(other, Callback) and other.constant_sparsity:
            name = type(callback).__name__
            raise ConfigError(
                f"{name} answers events that prune further, and {type(other).__name__} has its "
                f"sparsity from the first step on: leave {name} out, or write "
                "MagnitudePruning(0.9) instead"
            )
