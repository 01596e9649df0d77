# SPDX-License-Identifier: MIT
"""Unscaled gradients under a gradient scaler, and the optimizer steps that it skips."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from regrow.distributed.shard import is_dtensor, local_tensor
from regrow.utils.lightning_classes import pl


def amp_step_skipped(trainer: pl.Trainer, optimizer: Optimizer) -> bool:
    """Whether the gradient scaler is about to skip this step, because a gradient is not finite."""
    if _scaler(trainer) is None:
        return False
    gradients = [p.grad for p in _parameters(optimizer) if p.grad is not None]
    skipped = not all(bool(local_tensor(grad).isfinite().all()) for grad in gradients)
    if any(map(is_dtensor, gradients)):  # other ranks have other rows
        skipped = bool(trainer.strategy.reduce_boolean_decision(skipped, all=False))
    return skipped


def drop_gradients(trainer: pl.Trainer, optimizer: Optimizer) -> None:
    """Remove a step's gradients, so that the step changes nothing."""
    scaler = _scaler(trainer)
    if scaler is not None and _fused(optimizer):
        scaler.unscale_(optimizer)  # else the scaler reads them at the step, and finds none
    for parameter in _parameters(optimizer):
        parameter.grad = None


@contextmanager
def unscaled_gradients(trainer: pl.Trainer, optimizer: Optimizer) -> Iterator[None]:
    """Replace gradients by unscaled copies where a fused optimizer step unscales by itself."""
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
    """Whether the optimizer unscales gradients itself; Lightning reads the same attribute."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
