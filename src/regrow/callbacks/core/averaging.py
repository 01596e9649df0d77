# SPDX-License-Identifier: MIT
"""Masks on EMA/SWA copies.

What is pruned is +0.0 in the average too, what comes back begins there with the value it has in the
model, and every other place is what Lightning makes it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from regrow.channels.cut.channel_cut import ChannelCut
from regrow.distributed.shard import is_dtensor
from regrow.pruning.enforcer import MaskEnforcer
from regrow.utils.errors import ConfigError
from regrow.utils.names import named_parameters

Averaging = WeightAveraging | StochasticWeightAveraging


class Averages:
    """The averaged copies of the model that callbacks of a Trainer keep.

    Args:
        trainer: With any number of such callbacks; None: there are none.
    """

    def __init__(self, trainer: pl.Trainer | None = None) -> None:
        given = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
        self.callbacks: list[Averaging] = [c for c in given if isinstance(c, Averaging)]

    @property
    def copies(self) -> list[nn.Module]:
        """The copies that there are now: Lightning makes them when a fit is set up."""
        held = (_copy_of(callback) for callback in self.callbacks)
        return [average for average in held if average is not None]

    def masks(self, enforcer: MaskEnforcer) -> dict[str, Tensor]:
        """The masks before they change, for `follow`; none where nothing is averaged."""
        names = enforcer.parameters if self.copies else ()
        return {name: enforcer.mask(name) for name in names}

    @torch.no_grad()
    def sync_changed(self, enforcer: MaskEnforcer, before: Mapping[str, Tensor]) -> None:
        """Where masks changed, the average takes the model's value: +0.0, or what came back."""
        for average in self.copies:
            named = parameters(average)
            for name, mask in before.items():
                weight, held = enforcer.parameters[name], named[name]
                changed = mask != enforcer.mask(name)
                held[changed.to(held.device)] = weight[changed].to(held)

    @torch.no_grad()
    def mask(self, enforcer: MaskEnforcer) -> None:
        """Makes every pruned place of the averages exactly +0.0."""
        for average in self.copies:
            for name, held in parameters(average).items():
                if enforcer.kept(name) is not None:
                    held.masked_fill_(~enforcer.mask(name).to(held.device), 0)

    def slice(self, plan: ChannelCut | None) -> None:
        """Cuts the averages as the model was cut, if it was."""
        if plan is not None:
            for average in self.copies:
                plan.apply(average)

    def resize(self, module: nn.Module) -> None:
        """Gives averages the shapes of the module, whose copies they become, if they differ."""
        if any(_shapes(average) != _shapes(module) for average in self.copies):
            self.rebuild(module)

    def rebuild(self, module: nn.Module) -> None:
        """Makes the averages copies of the module."""
        for callback in self.callbacks:
            own, average = callback._average_model, _copy_of(callback)
            if average is None:
                continue
            like = copy.deepcopy(module).to(next(average.parameters()).device)
            if isinstance(own, AveragedModel):
                own.module = like
            else:
                callback._average_model = like  # type: ignore[assignment]

    @torch.no_grad()
    def restart(self, module: nn.Module, step: int) -> None:
        """Lets the averages begin anew from the module as it is after so many steps."""
        self.copy_from_model(module)
        for callback, average in self._running:
            average.n_averaged.zero_()
            # one that comes later in the list would count the present weights twice
            callback.load_state_dict(callback.state_dict() | {"latest_update_step": step})

    @torch.no_grad()
    def copy_from_model(self, module: nn.Module) -> None:
        """Writes parameters and buffers of the module into its averages."""
        for _, average in self._running:
            for held, value in zip(_tensors(average.module), _tensors(module), strict=True):
                held.copy_(value)

    def copy_to_model(self, module: pl.LightningModule) -> None:
        """Writes the average into the module, as Lightning does when training ends."""
        for callback, _ in self._running:
            callback._copy_average_to_current(module)

    def state_dict(self) -> list[dict[str, Any]]:
        """The averages, and how many moments each has seen."""
        return [average.state_dict() for _, average in self._running]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]], module: nn.Module) -> None:
        """Takes what `state_dict` gave; averages that were not there then take the module."""
        self.copy_from_model(module)
        for (_, average), state in zip(self._running, states, strict=False):
            average.load_state_dict(state)

    @property
    def _running(self) -> list[tuple[WeightAveraging, AveragedModel]]:
        """Those that can go back to an earlier moment: `check_no_swa` keeps the others out."""
        found = [c for c in self.callbacks if isinstance(c, WeightAveraging)]
        return [(c, c._average_model) for c in found if c._average_model is not None]


def check_averages_complete(trainer: pl.Trainer, pruned: Mapping[str, nn.Parameter]) -> None:
    """Check that averages contain all pruned parameters in a fitting type.

    Args:
        trainer: With its fit set up.
        pruned: The parameters by name.

    Raises:
        ConfigError: Naming the callback and the parameters.
    """
    for callback in Averages(trainer).callbacks:
        average, name = _copy_of(callback), type(callback).__name__
        held = {} if average is None else parameters(average)
        missing = [own for own in pruned if own not in held]
        if missing:
            raise ConfigError(
                f"{name} copied the module before {', '.join(missing[:3])} was there, and would "
                "average nothing of it: make layers in __init__, not in configure_model or setup, "
                "or write WeightAveraging(), which calls configure_model"
            )
        if any(map(is_dtensor, pruned.values())):
            raise ConfigError(
                f"{name} averages a whole copy of the module, and its parameters are sharded among "
                f"ranks: leave {name} out, or write strategy='ddp'"
            )


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters by clean name, shared ones under each of theirs."""
    return {name: parameter.detach() for name, parameter in named_parameters(module).items()}


def trained_epochs(trainer: pl.Trainer) -> int | None:
    """`trainer.max_epochs`, without the one that SWA adds: it trains no weight.

    That epoch passes the data once for the statistics of batch norms.
    """
    most = trainer.max_epochs
    for callback in Averages(trainer).callbacks:
        if isinstance(callback, StochasticWeightAveraging) and most == 1 + getattr(
            callback, "_max_epochs", -2
        ):
            return most - 1
    return most


def _copy_of(callback: Averaging) -> nn.Module | None:
    held = callback._average_model
    return held.module if isinstance(held, AveragedModel) else held


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, in the order in which Lightning pairs them."""
    return chain(module.parameters(), module.buffers())


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [tensor.shape for tensor in _tensors(module)]
