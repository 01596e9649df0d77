# SPDX-License-Identifier: MIT
"""Slimming: L1 penalty on the scales of batch norms."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from regrow.callbacks.core.base import Callback
from regrow.utils.errors import ConfigError, check_positive
from regrow.utils.lightning_classes import pl
from regrow.utils.modes import no_compile
from regrow.utils.optimizers import trained_parameters


class Slimming(Callback):
    """Add the subgradient of `weight * sum |scale|` to the gradients of all batch-norm scales.

    Put it before `ChannelPruning(criterion="bn")`, which ranks channels by these scales.

    Args:
        weight: Weight of the penalty; the paper uses 1e-5 to 1e-4.

    Raises:
        ConfigError: If the module has no batch norm with a scale.

    Source: Liu et al. 2017, arXiv 1708.06519, eq. 1.

    Example:
        >>> Slimming(0)
        Traceback (most recent call last):
            ...
        regrow.ConfigError: weight must be a number above 0, got 0: write 1e-4
    """

    def __init__(self, weight: float = 1e-4) -> None:
        super().__init__()
        self.weight = check_positive("weight", weight, "1e-4")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not scales(pl_module):
            raise ConfigError(
                "Slimming draws the scales of batch norms to zero, and the module has none: leave "
                "it out and rank by criterion='l2'"
            )

    @no_compile
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        trained = trained_parameters(optimizer)
        for scale in scales(pl_module):
            if scale.grad is not None and id(scale) in trained:
                scale.grad.add_(scale.sign(), alpha=self.weight)


def scales(module: nn.Module) -> list[nn.Parameter]:
    """The scales of all batch norms."""
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [norm.weight for norm in norms if isinstance(norm.weight, nn.Parameter)]
