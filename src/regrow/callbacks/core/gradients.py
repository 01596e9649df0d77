# SPDX-License-Identifier: MIT
"""Dense, unscaled gradients; skipped AMP steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from regrow.callbacks.core.base import Callback
from regrow.callbacks.core.checks import waits_for_gradients
from regrow.callbacks.core.pruner_types import AnyPruner
from regrow.distributed.shard import is_dtensor, local_tensor

if TYPE_CHECKING:
    from regrow.callbacks.core.pruning_callback import PruningCallback


def show_gradients(
    trainer: pl.Trainer,
    optimizer: Optimizer,
    listeners: Sequence[Callback],
    pruners: Sequence[PruningCallback],
) -> None:
    """Shows dense, unscaled gradients to all that look at them, before anyone masks them.

    Args:
        trainer: In a step.
        optimizer: Whose step it is.
        listeners: Who hears of dense gradients.
        pruners: All pruning callbacks.
    """
    looking = [pruner for pruner in pruners if waits_for_gradients(pruner.pruner)]
    if not (listeners or looking):
        return
    with _unscaled(trainer, optimizer):
        for listener in listeners:
            listener.on_dense_gradients(trainer, optimizer)
        for pruner in looking:
            pruner.on_gradients(trainer, optimizer)


def before_step(trainer: pl.Trainer, optimizer: Optimizer, pruner: AnyPruner) -> None:
    """Masks gradients, or puts soft pruning's dense values in, before an optimizer's step.

    No hook follows a step that is skipped, so dense values would stay in for what comes next.
    """
    if not (pruner.soft and amp_step_skipped(trainer, optimizer)):
        pruner.enforcer.prepare()


def amp_step_skipped(trainer: pl.Trainer, optimizer: Optimizer) -> bool:
    """Whether a gradient scaler is about to skip this step: its gradients rank nothing.

    It does for any gradient of the optimizer that is not finite, masked or not.
    """
    if _scaler(trainer) is None:
        return False
    gradients = [
        parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None
    ]
    bad = not all(bool(local_tensor(grad).isfinite().all()) for grad in gradients)
    if any(map(is_dtensor, gradients)):  # other ranks see other rows
        bad = bool(trainer.strategy.reduce_boolean_decision(bad, all=False))
    return bad


def drop_gradients(trainer: pl.Trainer, optimizer: Optimizer) -> None:
    """Takes a step's gradients away, so that it changes nothing."""
    scaler = _scaler(trainer)
    if scaler is not None and _fused(optimizer):
        scaler.unscale_(optimizer)  # else it looks at them at the step, and none is an error
    for parameter in _parameters(optimizer):
        parameter.grad = None


@contextmanager
def _unscaled(trainer: pl.Trainer, optimizer: Optimizer) -> Iterator[None]:
    """Puts unscaled copies in place of gradients that a fused step would unscale by itself."""
    scaler = _scaler(trainer)
    if scaler is None or not _fused(optimizer):
        yield
        return
    scale = scaler.get_scale()
    scaled = [(p, p.grad) for p in _parameters(optimizer) if p.grad is not None]
    for parameter, grad in scaled:
        parameter.grad = grad / scale
    try:
        yield
    finally:
        for parameter, grad in scaled:
            parameter.grad = grad


def _scaler(trainer: pl.Trainer) -> GradScaler | None:
    scaler: GradScaler | None = getattr(trainer.precision_plugin, "scaler", None)
    return scaler


def _fused(optimizer: Optimizer) -> bool:
    """Whether the optimizer unscales gradients itself, as Lightning asks it too."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
