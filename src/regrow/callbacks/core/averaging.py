# SPDX-License-Identifier: MIT
"""Masks on the averaged copies (EMA, SWA) that Lightning callbacks keep of a model.

Pruned weights are +0.0 in an average too, regrown ones start there with the model's value, and
all others are what Lightning computes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from regrow.channels.cut.channel_cut import ChannelCut
from regrow.distributed.shard import is_dtensor
from regrow.pruning.enforcer import MaskEnforcer
from regrow.utils.errors import ConfigError
from regrow.utils.lightning_classes import lightning_classes, pl
from regrow.utils.names import named_parameters

Averaging: TypeAlias = "pl.callbacks.WeightAveraging | pl.callbacks.StochasticWeightAveraging"
_WEIGHTS = lightning_classes("callbacks.WeightAveraging")
_SWA = lightning_classes("callbacks.StochasticWeightAveraging")


class Averages:
    """The averaged copies that the callbacks of a Trainer keep; none without a Trainer."""

    def __init__(self, trainer: pl.Trainer | None = None) -> None:
        given = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
        self.callbacks: list[Averaging] = [c for c in given if isinstance(c, _WEIGHTS + _SWA)]

    @property
    def copies(self) -> list[nn.Module]:
        """The copies that exist now: Lightning creates them when a fit is set up."""
        copies = (_copy_of(callback) for callback in self.callbacks)
        return [average for average in copies if average is not None]

    def masks(self, enforcer: MaskEnforcer) -> dict[str, Tensor]:
        """The masks before a change, for `sync_changed`; empty where nothing is averaged."""
        names = enforcer.parameters if self.copies else ()
        return {name: enforcer.mask(name) for name in names}

    @torch.no_grad()
    def sync_changed(self, enforcer: MaskEnforcer, before: Mapping[str, Tensor]) -> None:
        """Copy the model's values (+0.0, or regrown ones) into the averages where masks changed."""
        for average in self.copies:
            named = named_parameters(average)
            for name, mask in before.items():
                weight, averaged = enforcer.parameters[name], named[name]
                changed = mask != enforcer.mask(name)
                averaged[changed.to(averaged.device)] = weight[changed].to(averaged)

    @torch.no_grad()
    def mask(self, enforcer: MaskEnforcer) -> None:
        """Set the pruned weights of the averages to +0.0."""
        for average in self.copies:
            for name, averaged in named_parameters(average).items():
                if enforcer.kept(name) is not None:
                    averaged.masked_fill_(~enforcer.mask(name).to(averaged.device), 0)

    def slice(self, plan: ChannelCut) -> None:
        """Cut the averages as the model was cut."""
        for average in self.copies:
            plan.apply(average)

    def resize(self, module: nn.Module) -> None:
        """Replace the averages by copies of the module if their shapes differ."""
        if any(_shapes(average) != _shapes(module) for average in self.copies):
            self.rebuild(module)

    def rebuild(self, module: nn.Module) -> None:
        """Replace the averages by copies of the module."""
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
        """Restart the averages from the module as it is at a step."""
        self.copy_from_model(module)
        for callback, average in self._running:
            average.n_averaged.zero_()
            # one that comes later in the list would count the present weights twice
            callback.load_state_dict(callback.state_dict() | {"latest_update_step": step})

    @torch.no_grad()
    def copy_from_model(self, module: nn.Module) -> None:
        """Copy parameters and buffers of the module into its averages."""
        for _, average in self._running:
            for averaged, value in zip(_tensors(average.module), _tensors(module), strict=True):
                averaged.copy_(value)

    def copy_to_model(self, module: pl.LightningModule) -> None:
        """Copy the average into the module, as Lightning does when training ends."""
        for callback, _ in self._running:
            callback._copy_average_to_current(module)

    def state_dict(self) -> list[dict[str, Any]]:
        """The averages, and how many steps each has averaged.

        Tensors are listed in order: a module's own `state_dict` may leave some of them out.
        """
        return [
            {"tensors": [*_tensors(average.module)], "n_averaged": average.n_averaged}
            for _, average in self._running
        ]

    @torch.no_grad()
    def load_state_dict(self, states: Sequence[Mapping[str, Any]], module: nn.Module) -> None:
        """Load averages; those without a saved state become copies of the module."""
        self.copy_from_model(module)
        for (_, average), state in zip(self._running, states, strict=False):
            for averaged, value in zip(_tensors(average.module), state["tensors"], strict=True):
                averaged.copy_(value)
            average.n_averaged.copy_(state["n_averaged"])

    @property
    def _running(self) -> list[tuple[pl.callbacks.WeightAveraging, AveragedModel]]:
        """The averages that can be restored; `Row` "restoring weights ..." rejects the others."""
        averaging = [c for c in self.callbacks if isinstance(c, _WEIGHTS)]
        return [(c, c._average_model) for c in averaging if c._average_model is not None]


def check_averages_complete(trainer: pl.Trainer, pruned: Mapping[str, nn.Parameter]) -> None:
    """Check that averages contain all pruned parameters, unsharded."""
    for callback in Averages(trainer).callbacks:
        average, name = _copy_of(callback), type(callback).__name__
        averaged = {} if average is None else named_parameters(average)
        missing = [own for own in pruned if own not in averaged]
        if missing:
            raise ConfigError(
                f"{name} copied the module before {', '.join(missing[:3])} was there, so it does "
                "not average them: create layers in __init__, not in configure_model or setup, "
                "or write WeightAveraging(), which calls configure_model"
            )
        if any(map(is_dtensor, pruned.values())):
            raise ConfigError(
                f"{name} averages a whole copy of the module, and its parameters are sharded among "
                f"ranks: leave {name} out, or write strategy='ddp'"
            )


def trained_epochs(trainer: pl.Trainer) -> int | None:
    """`trainer.max_epochs` without the last epoch of SWA, which only updates batch norms."""
    most = trainer.max_epochs
    for callback in Averages(trainer).callbacks:
        if isinstance(callback, _SWA) and most == 1 + getattr(callback, "_max_epochs", -2):
            return most - 1
    return most


def _copy_of(callback: Averaging) -> nn.Module | None:
    average = callback._average_model
    return average.module if isinstance(average, AveragedModel) else average


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, in the order in which Lightning pairs them."""
    return chain(module.parameters(), module.buffers())


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [tensor.shape for tensor in _tensors(module)]
