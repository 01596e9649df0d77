# SPDX-License-Identifier: MIT
"""What stands beside channel pruning in a fit: callbacks it cannot work with, and the loader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from regrow.callbacks.base import Callback, suite
from regrow.callbacks.dynamic import DynamicSparseTraining
from regrow.callbacks.pruning import PruningCallback
from regrow.callbacks.shapes import training_inputs
from regrow.channel_method import ChannelMethod
from regrow.channels.plan import Plan
from regrow.channels.recalibration import recalibrate
from regrow.criteria import TrackingCriterion
from regrow.errors import ConfigError, StateError

if TYPE_CHECKING:
    from regrow.callbacks.channel_pruning import ChannelPruning


def check_settings(
    compact: object, keep_removed: object, latency_ms: float | None, sparsity_given: bool
) -> None:
    """Refuses settings that have no meaning, alone or beside each other.

    Raises:
        ConfigError: Naming the setting and what may stand there.
    """
    if compact not in ("end", "event", None):
        raise ConfigError(f"compact must be 'end', 'event' or None, got {compact!r}")
    if not isinstance(keep_removed, bool):
        raise ConfigError(f"keep_removed must be True or False, got {keep_removed!r}")
    if latency_ms is not None and sparsity_given:
        raise ConfigError(
            f"latency_ms={latency_ms!r} says how far to go, and so does sparsity=: "
            "write one of them"
        )


def refuse_company(trainer: pl.Trainer, callback: ChannelPruning) -> None:
    """Refuses callbacks that hold tensors of shapes that a cut would change.

    Raises:
        ConfigError: Naming the callback and what to write.
    """
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if other is callback or not isinstance(other, PruningCallback):
            continue
        name = type(other).__name__
        if isinstance(other, type(callback)):
            raise ConfigError(
                f"two {name} would cut the same module: write one, with include= of both"
            )
        if callback.compact_at is None:
            continue
        criterion = getattr(other.method, "criterion", None)
        for what, is_so in (
            ("constant sparsity", isinstance(other, DynamicSparseTraining)),
            ("soft=True", other.soft),
            ("a criterion that tracks gradients", tracks(criterion)),
        ):
            if is_so:
                raise ConfigError(
                    f"{name} with {what} holds tensors that do not follow a cut: write "
                    "compact=None in ChannelPruning, or another pruning of weights"
                )


def refuse_ranks(trainer: pl.Trainer, callback: ChannelPruning) -> None:
    """What several ranks cannot do: time alike, and cut while DDP trains.

    Raises:
        ConfigError: For `of="latency"`.
    """
    assert isinstance(callback.method, ChannelMethod)
    if callback.method.of == "latency":
        raise ConfigError(
            "of='latency' is measured, and ranks would measure differently: write of='macs', "
            "or train on one device"
        )
    if callback.compact_at == "event" and isinstance(trainer.strategy, DDPStrategy):
        rank_zero_info("DDP holds on to the shapes it began with: channels go at the fit's end")
        callback.compact_at = "end"


def refuse_live_cut(trainer: pl.Trainer) -> None:
    """What DDP has hooked and counted keeps its shapes until the fit ends.

    Raises:
        StateError: Within a fit under DDP.
    """
    if isinstance(trainer.strategy, DDPStrategy):
        raise StateError(
            "DDP holds on to the shapes it began with: leave the cut to the fit's end "
            "(compact='end'), or call compact() after it"
        )


def tell_cut(trainer: pl.Trainer, callback: ChannelPruning, plan: Plan) -> None:
    """Lets the other callbacks of the suite, and its own rewinder, follow a cut."""
    others: list[Callback] = [other for other in suite(trainer) if other is not callback]
    if callback.rewinder is not None:
        others.append(callback.rewinder)
    for other in others:
        other.on_compact(trainer, trainer.lightning_module, plan)


def rewrap(trainer: pl.Trainer) -> None:
    """Makes DDP anew, which hooks gradient accumulators; the trial cut has replaced them."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and strategy.model is not strategy.lightning_module:
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()


def tracks(criterion: object) -> bool:
    """Whether a criterion keeps something of each weight from step to step."""
    return criterion == "movement" or isinstance(criterion, TrackingCriterion)


def recalibrate_on(trainer: pl.Trainer, module: pl.LightningModule, count: int) -> None:
    """Estimates norms' statistics anew on training batches, once a fit is over."""
    batches = training_inputs(trainer, count)
    if not batches:
        rank_zero_warn(
            "recalibrate= needs training batches that are tensors or (inputs, ...), so statistics "
            "stay as they are: call regrow.channels.recalibrate(module, batches)"
        )
        return
    before, device = module.device, trainer.strategy.root_device
    module.to(device)
    with trainer.precision_plugin.forward_context():
        recalibrate(module, batches)
    if trainer.world_size > 1:  # each rank has seen batches of its own
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)
    module.to(before)
