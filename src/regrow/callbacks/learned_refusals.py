# SPDX-License-Identifier: MIT
"""What learnable masks cannot be beside, refused by name before training starts."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim import Optimizer

from regrow.callbacks.pruning import PruningCallback
from regrow.channel_method import ChannelMethod
from regrow.errors import ConfigError, StateError
from regrow.pruner import Pruner
from regrow.targets import select


def refuse_unlearnable(trainer: pl.Trainer, callback: PruningCallback, pruner: Pruner) -> None:
    """All that is refused when a fit that learns masks starts.

    Raises:
        ConfigError: For optimizers, parameters and callbacks that learned masks do not go with.
    """
    _refuse_closures(trainer)
    _refuse_untrained(trainer, pruner)
    _refuse_company(trainer, callback, pruner)


def refuse_masked(pruner: Pruner) -> None:
    """Refuses a model that is partly pruned.

    Raises:
        ConfigError: Saying what to do.
    """
    if pruner.pruned:
        raise ConfigError(
            f"the model has sparsity {pruner.sparsity:.6g} already, and masks are learned from a "
            "dense one: call unprune() first, or go on with MagnitudePruning"
        )


def rate_factor(optimizer: Optimizer, parameter: nn.Parameter) -> float:
    """Where the schedule of a parameter's learning rate stands: 1 at its peak, or without one.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.4)
        >>> _ = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.5)
        >>> sgd.param_groups[0]["lr"] = 0.1
        >>> rate_factor(sgd, layer.weight)
        0.25
    """
    for group in optimizer.param_groups:
        if any(held is parameter for held in group["params"]):
            rate = float(group["lr"])
            peak = float(group.get("max_lr", group.get("initial_lr", rate)))
            return rate / peak if peak else 1.0
    return 1.0


def _refuse_closures(trainer: pl.Trainer) -> None:
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigError(
                "LBFGS runs the network within its step, where learned masks keep dense weights: "
                "write another optimizer"
            )
        scales = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scales and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ConfigError(
                f"a fused {type(optimizer).__name__} unscales 16-bit gradients within its step, so "
                "scores would learn from scaled ones: write fused=False, or precision='bf16-mixed'"
            )


def _refuse_untrained(trainer: pl.Trainer, pruner: Pruner) -> None:
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    trained = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    frozen = [t.name for t in pruner.targets if id(t.parameter) not in trained]
    if frozen:
        raise ConfigError(
            f"{', '.join(frozen[:3])} trains under no optimizer (frozen?), so no gradient would "
            "reach the scores: exclude it, or train it; for weights that stand still write "
            "train_weights=False"
        )
    sharded = [t.name for t in pruner.targets if type(t.parameter.data).__name__ == "DTensor"]
    if sharded:
        raise ConfigError(
            f"{sharded[0]} is sharded, and masks of sharded parameters are not learned yet: write "
            "strategy='ddp', or MagnitudePruning"
        )


def _refuse_company(trainer: pl.Trainer, callback: PruningCallback, pruner: Pruner) -> None:
    own = {target.name for target in pruner.targets}
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if other is callback or not isinstance(other, PruningCallback):
            continue
        name = type(other).__name__
        if isinstance(other.method, ChannelMethod):
            raise ConfigError(
                f"{name} cuts weights of which LearnedMasks keeps dense ones: write one of them"
            )
        theirs = select(trainer.lightning_module, other.method.include, other.method.exclude)
        shared = sorted(own & {target.name for target in theirs.targets})
        if shared:
            raise ConfigError(
                f"{name} prunes {', '.join(shared[:3])} too, whose masks are learned: tell them "
                "apart with include= and exclude="
            )


def refuse_other_learning(was: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuses to go on from a checkpoint whose masks were learned in another way.

    Raises:
        StateError: Naming what it was and what it is now.
    """
    changed = [f"{key}={was.get(key)}, now {now[key]}" for key in now if was.get(key) != now[key]]
    if changed:
        raise StateError(
            f"the checkpoint learned its masks with {'; '.join(changed)}: restore that, or load "
            "the weights and start a fit"
        )


def resumed_first(planned: int, first: int, on_change: str) -> int:
    """The step at which learning begins, where a resumed fit has not come to it.

    Args:
        planned: By the fit that was interrupted.
        first: By this one.
        on_change: What to do where they differ: "refuse", "keep" or "stretch".

    Raises:
        ConfigError: If they differ and that is refused.

    Example:
        >>> resumed_first(10, 20, "stretch")
        20
    """
    if first != planned and on_change == "refuse":
        raise ConfigError(
            f"the checkpoint planned to learn masks from step {planned} on, this fit from step "
            f"{first}: restore begin, max_epochs, batch size and ranks, or write on_change='keep' "
            "or 'stretch'"
        )
    return planned if on_change == "keep" else first
