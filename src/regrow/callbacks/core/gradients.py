# SPDX-License-Identifier: MIT
"""Dense, unscaled gradients; skipped AMP steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from regrow.distributed.shard import is_dtensor, local_tensor


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
def unscaled_gradients(trainer: pl.Trainer, optimizer: Optimizer) -> Iterator[None]:
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
