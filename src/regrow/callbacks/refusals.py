# SPDX-License-Identifier: MIT
"""What cannot be pruned right, refused by name before training starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from regrow.callbacks.pruners import AnyPruner
from regrow.errors import ConfigError, StateError
from regrow.targets import clean

if TYPE_CHECKING:
    from regrow.callbacks.pruning import PruningCallback

_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


def refuse_unfit(trainer: pl.Trainer, module: nn.Module, pruner: AnyPruner) -> None:
    """All that is refused when a fit starts.

    Raises:
        ConfigError: For a strategy, callback or optimizer that masks do not reach.
        StateError: For a model whose parameters are no longer those that are masked.
    """
    refuse_replaced(module, pruner)
    refuse_averaging(trainer)
    refuse_sharded(trainer, pruner)
    refuse_split(trainer.optimizers, pruner)
    if pruner.soft:
        refuse_closures(trainer.optimizers)


def refuse_sharded(trainer: pl.Trainer, pruner: AnyPruner) -> None:
    """Refuses strategies that keep only a part of each weight on a rank.

    Raises:
        ConfigError: Naming the strategy or the sharded parameter.
    """
    sharded = [t.name for t in pruner.targets if type(t.parameter.data).__name__ == "DTensor"]
    if isinstance(trainer.strategy, _SHARDED) or sharded:
        name = type(trainer.strategy).__name__
        raise ConfigError(
            f"{name} shards parameters ({', '.join(sharded[:3]) or 'all of them'}), and masks of "
            "sharded parameters are not supported: write strategy='ddp'"
        )


def refuse_averaging(trainer: pl.Trainer) -> None:
    """Refuses callbacks that average weights in a copy of the module.

    Raises:
        ConfigError: Masks do not reach the copy, which takes the module's place in the end.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging | StochasticWeightAveraging):
            raise ConfigError(
                f"{type(callback).__name__} averages weights in a copy of its own, in which pruned "
                "ones would come back: leave it out of a fit that prunes"
            )


def waits_for_gradients(pruner: AnyPruner) -> bool:
    """Whether events fire where gradients are: this step's count too."""
    return pruner.needs_gradients or pruner.tracks


def refuse_replaced(module: nn.Module, pruner: AnyPruner) -> None:
    """Refuses a model whose parameters are no longer the ones that are masked.

    Raises:
        StateError: Naming those that were replaced since.
    """
    named = {clean(n): p for n, p in module.named_parameters(remove_duplicate=False)}
    lost = [t.name for t in pruner.targets if named.get(t.name) is not t.parameter]
    if lost:
        raise StateError(
            f"{', '.join(lost[:5])} of the model were replaced by other parameters since they were "
            "masked: call attach(model) to carry the masks over"
        )


def refuse_passed(pruner: AnyPruner, start: float, final: float) -> None:
    """Refuses a target below the sparsity that the model has.

    Raises:
        ConfigError: What is pruned stays pruned.
    """
    if pruner.units(start) > pruner.units(final) > 0:
        raise ConfigError(
            f"the model has sparsity {start:.6g} already, sparsity={final:g} is less: ask for "
            "more, or bring weights back first (unprune, prune_to(0))"
        )


def refuse_split(optimizers: Sequence[Optimizer], pruner: AnyPruner) -> None:
    """Refuses gradient criteria over parameters that no single optimizer holds together.

    Raises:
        ConfigError: Gradients of different optimizers are never there at the same moment.
    """
    if waits_for_gradients(pruner) and not any(map(pruner.trained_by, optimizers)):
        raise ConfigError(
            "this criterion ranks gradients of all pruned parameters together, but no optimizer "
            "trains all of them (frozen layers, or one optimizer a part?): exclude what is not "
            "trained, or use one pruning callback an optimizer with include="
        )


def overflowed(trainer: pl.Trainer, pruner: AnyPruner) -> bool:
    """Whether a gradient scaler is about to skip this step: its gradients rank nothing."""
    if getattr(trainer.precision_plugin, "scaler", None) is None:
        return False
    gradients = (target.parameter.grad for target in pruner.targets)
    return not all(bool(grad.isfinite().all()) for grad in gradients if grad is not None)


def refuse_closures(optimizers: Sequence[Optimizer]) -> None:
    """Refuses soft pruning with optimizers that call their closure several times a step.

    Raises:
        ConfigError: The forward pass would see masked weights once and dense ones after.
    """
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise ConfigError(
            "soft=True keeps dense values in the weights while the optimizer steps, and LBFGS runs "
            "the network within its step: write soft=False, or another optimizer"
        )


def warn_unfinished(trainer: pl.Trainer, callback: PruningCallback) -> None:
    """Warns of a fit that ended before its events did."""
    ahead = callback.progress.ahead
    if ahead and not trainer.should_stop:
        rank_zero_warn(
            f"the fit ended at sparsity {callback.sparsity:.4g}, before {len(ahead)} planned "
            f"events, the last of them to sparsity {ahead[-1].sparsity:.4g}. Does the module call "
            "step() of a raw optimizer? Lightning neither counts such steps nor shows their "
            "gradients: use self.optimizers()"
        )
