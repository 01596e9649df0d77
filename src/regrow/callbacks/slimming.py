# SPDX-License-Identifier: MIT
"""Slimming: penalties that draw the channels to zero which are pruned afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.callbacks.channel_pruning import ChannelPruning
from regrow.callbacks.core.base import Callback
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.channels.graph.groups import Group
from regrow.channels.regularization import GroupPenalty, sparse_group_factors
from regrow.utils.errors import ConfigError, check_choice, check_positive
from regrow.utils.lightning_classes import pl
from regrow.utils.modes import no_compile
from regrow.utils.names import callable_name, parameters
from regrow.utils.optimizers import trained_parameters

PENALTIES = ("scales", "group", "growing")


class SlimmingState(TypedDict):
    """The saved state of `Slimming`."""

    steps: int  # with the penalty
    chosen: dict[str, Tensor]  # channels that it drives to zero, by group


class Slimming(Callback):
    """Draw channels to zero while the network trains, so that little is lost when they go.

    A penalty's gradient is added to those of the loss. "group" and "growing" act on all parameters
    of the groups that a `ChannelPruning` in the same Trainer cuts; put this callback before it:

    * "scales": `weight * sum |scale|` over the scales of batch norms, which
      `ChannelPruning(criterion="bn")` ranks (Liu et al. 2017, arXiv 1708.06519, eq. 1).
    * "group": `weight / 2 * sum f_k |w_k|^2` over the channels k of each group, where f_k goes from
      1 for the largest to 16 for the smallest norm (Fang et al. 2023, arXiv 2301.12900).
    * "growing": `p / 2 * |w_k|^2` over the channels that `ChannelPruning` would remove as training
      starts; p grows by `weight` with every optimizer step, up to `ceiling` (GReg-1: Wang et al.
      2021, arXiv 2012.09243; there by 1e-4 every 5 or 10 steps). Choose a late `begin`.

    Args:
        weight: Weight of the penalty, or its growth; Liu et al. use 1e-5 to 1e-4.
        penalty: "scales", "group" or "growing".
        ceiling: Largest weight of a growing penalty.

    Raises:
        ConfigError: If the module has no batch norm with a scale, or the Trainer no
            `ChannelPruning` for a penalty on groups.

    Example:
        >>> Slimming(0)
        Traceback (most recent call last):
            ...
        regrow.ConfigError: weight must be a number above 0, got 0: write 1e-4
    """

    def __init__(
        self, weight: float = 1e-4, *, penalty: str = "scales", ceiling: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = check_positive("weight", weight, "1e-4")
        self.penalty = check_choice("penalty", penalty, PENALTIES)
        self.ceiling = check_positive("ceiling", ceiling, "1.0")
        self.steps = 0  # of a growing penalty
        self.chosen: dict[str, Tensor] = {}  # channels that it draws to zero, by group
        self._channels: ChannelPruning | None = None
        self._groups: GroupPenalty | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":  # another fit starts anew; a resumed one loads these afterwards
            self.steps, self.chosen = 0, {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.penalty == "scales":
            if not scales(pl_module):
                raise ConfigError(
                    "Slimming draws the scales of batch norms to zero, and the module has none: "
                    "write penalty='group', or leave it out and rank by criterion='l2'"
                )
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        found = [callback for callback in callbacks if isinstance(callback, ChannelPruning)]
        if len(found) != 1:
            raise ConfigError(
                f"Slimming(penalty={self.penalty!r}) draws the channels to zero that ChannelPruning"
                f" cuts, and the Trainer has {len(found)} of it: add ChannelPruning(0.5) to "
                "callbacks, or write penalty='scales'"
            )
        self._channels = found[0]
        config = self._channels.strategy.config
        if self.penalty == "growing" and config.needs_data:
            raise ConfigError(
                "Slimming(penalty='growing') chooses channels as training starts, when criterion="
                f"{callable_name(config.criterion)!r} has no data yet: write criterion='l1'"
            )

    @no_compile
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        trained = trained_parameters(optimizer)
        if self.penalty == "scales":
            for scale in scales(pl_module):
                if scale.grad is not None and id(scale) in trained:
                    scale.grad.add_(scale.sign(), alpha=self.weight)
        elif self._channels is not None and self._channels.pruner.trained_by(optimizer):
            pruner, final = self._channels.pruner, self._channels.session.final
            if self._groups is None:  # not before the masks of a resumed fit are known
                self._groups = GroupPenalty(pruner.free, parameters(pl_module))
                if self.penalty == "growing" and not self.chosen:
                    self.chosen = pruner.choose(final)
            self._groups.add_gradients(self._factors(self._groups, pruner.free), trained)

    def on_compact(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: ChannelCut
    ) -> None:
        self._groups, self.chosen = None, {}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._channels = self._groups = None

    def state_dict(self) -> dict[str, Any]:
        state: SlimmingState = {"steps": self.steps, "chosen": dict(self.chosen)}
        return {**state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.steps, self.chosen = state_dict["steps"], dict(state_dict["chosen"])

    def _factors(self, penalty: GroupPenalty, groups: Sequence[Group]) -> dict[str, Tensor]:
        """The weight of the penalty on each channel, by group."""
        if self.penalty == "group":
            squares = {group.name: penalty.squares(group.name) for group in groups}
            return {name: self.weight * sparse_group_factors(n) for name, n in squares.items()}
        self.steps += 1
        growing = min(self.ceiling, self.weight * self.steps)
        drawn = {group.name: torch.zeros(group.size) for group in groups}
        for name, channels in self.chosen.items():
            drawn[name][channels] = growing
        return drawn


def scales(module: nn.Module) -> list[nn.Parameter]:
    """The scales of all batch norms."""
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [norm.weight for norm in norms if isinstance(norm.weight, nn.Parameter)]
