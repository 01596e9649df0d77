# SPDX-License-Identifier: MIT
"""Check that masks can be applied with the model, optimizers and strategy of a fit."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from lightning_utilities.core.imports import compare_version
from torch import nn
from torch.optim import Optimizer

from regrow.callbacks.core.averaging import check_averages_complete
from regrow.callbacks.core.base import waits_for_gradients
from regrow.distributed.shard import is_dtensor, reshard_fsdp
from regrow.pruning.base import BasePruner
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.lightning_classes import lightning_classes, pl
from regrow.utils.names import named_parameters

_SHARDED = tuple(
    kind
    for name in ("DeepSpeedStrategy", "FSDPStrategy")
    for kind in lightning_classes(f"strategies.{name}")
)
_BOUND_TO_TRAINER = (  # Lightning raises "Expected a parent" for modules of the other package
    *lightning_classes("callbacks.WeightAveraging"),
    *lightning_classes("callbacks.GradientAccumulationScheduler"),
)
_FINETUNING = lightning_classes("callbacks.BaseFinetuning")
_STARTS_PROCESSES = lightning_classes("strategies.launchers._MultiProcessingLauncher")


def check_same_package(trainer: pl.Trainer) -> None:
    """Check the Trainer's version, and that callbacks bound to its package are of that package."""
    kind = next((c for c in lightning_classes("Trainer") if isinstance(trainer, c)), pl.Trainer)
    package = kind.__module__.partition(".trainer.")[0]
    if compare_version(package, operator.lt, "2.5.6"):
        name = package.partition(".")[0].replace("_", "-")
        raise ConfigError(
            f"the Trainer is of a {package} before 2.5.6, whose resumed fits are not exact: "
            f'pip install "{name}>=2.5.6"'
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for theirs in _BOUND_TO_TRAINER:
            other = theirs.__module__.partition(".callbacks.")[0]
            if isinstance(callback, theirs) and other != package:
                parents = (c for c in type(callback).__mro__ if c.__module__.startswith(other))
                name = next(parents).__name__
                raise ConfigError(
                    f"{name} is of {other}, and the Trainer of {package}: write "
                    f"from {package}.callbacks import {name}"
                )


def check_results_return(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Check that the callbacks of a fit are those of the process that called `fit`.

    Processes that Lightning spawns or forks return the model's weights alone.
    """
    if isinstance(trainer.strategy.launcher, _STARTS_PROCESSES):
        raise ConfigError(
            f"{type(trainer.strategy).__name__} trains in new processes (ddp_spawn, ddp_fork, "
            f"ddp_notebook) and returns only the weights: masks and history of "
            f"{type(callback).__name__} would be lost. Write strategy='ddp' in a script, or "
            "devices=1 in a notebook"
        )


def check_pruner_fits(trainer: pl.Trainer, module: nn.Module, pruner: BasePruner) -> None:
    """Run all checks of a pruner when a fit starts."""
    if pruner.model is not module:
        raise StateError(
            "the pruning callback holds the masks of another model object: call attach(model) to "
            "carry them over, or make a new callback for a fresh model"
        )
    reshard_fsdp(module)  # else these replace the parameters
    if lost := replaced_parameters(module, pruner):
        raise StateError(
            f"{', '.join(lost[:5])} of the model were replaced by other parameters since they were "
            "masked: call attach(model) to carry the masks over"
        )
    check_averages_complete(trainer, {target.name: target.parameter for target in pruner.targets})
    check_sharding_supported(trainer, pruner)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if not any(isinstance(callback, _FINETUNING) for callback in callbacks):
        # such a callback may add layers before the first event
        check_gradients_together(trainer.optimizers, pruner)
    if pruner.state.soft and _has_lbfgs(trainer):
        raise ConfigError(
            "soft=True keeps dense values in the weights while the optimizer steps, and LBFGS runs "
            "the network within its step: write soft=False, or another optimizer"
        )


def check_sharding_supported(trainer: pl.Trainer, pruner: BasePruner) -> None:
    """Check what is supported if each rank holds a part of the weights."""
    strategy, name = trainer.strategy, type(trainer.strategy).__name__
    if isinstance(strategy, _SHARDED):
        raise ConfigError(
            f"{name} keeps parameters in flat parts, which have no rows to mask: write "
            "strategy='ddp', or strategy=ModelParallelStrategy() and fully_shard the module in "
            "configure_model (FSDP2)"
        )
    sharded = [target.name for target in pruner.targets if is_dtensor(target.parameter)]
    if not sharded or not isinstance(pruner, Pruner):  # channels were checked before
        return
    names = f"parameters are sharded among ranks ({', '.join(sharded[:3])}, ...)"
    if _has_lbfgs(trainer):
        raise ConfigError(f"{names}, and LBFGS needs whole ones: write another optimizer")


def _has_lbfgs(trainer: pl.Trainer) -> bool:
    return any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers)


def replaced_parameters(module: nn.Module, pruner: BasePruner) -> list[str]:
    """The names of masked parameters that the model has replaced by others."""
    named = named_parameters(module)
    return [t.name for t in pruner.targets if named.get(t.name) is not t.parameter]


def check_gradients_together(optimizers: Sequence[Optimizer], pruner: BasePruner) -> None:
    """Check that one optimizer trains all parameters that are ranked by gradients."""
    if waits_for_gradients(pruner) and not any(map(pruner.trained_by, optimizers)):
        raise ConfigError(
            "events read the gradients of all pruned parameters within one optimizer's step, but "
            "no optimizer trains all of them (frozen layers, or one optimizer for each part?): "
            "exclude what is not trained, or write one pruning callback for each optimizer, with "
            "include="
        )


def check_target_reachable(pruner: BasePruner, start: float, final: float) -> None:
    """Check that a fit can prune from one sparsity to another."""
    if pruner.layer_targets and not pruner.units(final):
        raise ConfigError(
            f"sparsity={final:g} is less than one weight, and layers={pruner.layer_targets} move "
            "in proportion to it: write include=[...] with these layers, and their sparsity as "
            "sparsity"
        )
    if pruner.units(start) > pruner.units(final) > 0:
        instead = f"to keep exactly its zeros, write sparsity={start!r} or more"
        if pruner.history:
            instead = "ask for more, or bring weights back first (unprune, prune_to(0))"
        raise ConfigError(
            f"the model has sparsity {start:.6g} already, sparsity={final:g} is less: {instead}"
        )
