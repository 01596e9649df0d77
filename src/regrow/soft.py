# SPDX-License-Identifier: MIT
"""Soft enforcement: the network computes with masked weights, dense ones go on learning beside.

Around each optimizer step the dense values stand in the parameter, so that any optimizer updates
them with the gradients of the masked network; outside it the parameter is masked. What is pruned
may come back at the next event, with the value it has learned.

Source: Guo et al. 2016 (dynamic network surgery); Lin et al. 2020 (dynamic pruning with feedback).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.enforcement import Enforcer


class SoftEnforcer(Enforcer):
    """Holds working masks and the dense values beneath them: one more copy of each masked weight.

    Args:
        parameters: The parameters by name; they are changed in place, never replaced.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> soft = SoftEnforcer({"w": weight})
        >>> soft.set_mask("w", torch.tensor([True, False])); soft.weights(); weight.tolist()
        [1.0, 0.0]
        >>> soft.prepare(); weight.tolist()  # before a step
        [1.0, 2.0]
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(parameters)
        self._dense: dict[str, Tensor] = {}
        self._inside = False  # whether the dense values stand in the parameters

    @torch.no_grad()
    def set_mask(self, name: str, mask: Tensor) -> None:
        """Takes a new mask; what it no longer prunes has its dense value back at once."""
        parameter = self.data(name)
        if not self._inside and name in self._dense:
            parameter.copy_(self._latest(name))
        super().set_mask(name, mask)
        if self.kept(name) is None:
            self._dense.pop(name, None)
        else:
            self._dense[name] = parameter.detach().clone()

    @torch.no_grad()
    def insert(self) -> None:
        """Puts the dense values into the parameters."""
        if not self._inside:
            for name in self._dense:
                self.data(name).copy_(self._latest(name))
            self._inside = True

    @torch.no_grad()
    def weights(self) -> None:
        """Takes the dense values out, updated, and makes every pruned weight exactly +0.0."""
        if self._inside:
            for name, dense in self._dense.items():
                dense.copy_(self.data(name))
            self._inside = False
        super().weights()

    def gradients(self) -> None:
        """Leaves gradients alone: those of pruned weights are what dense values learn from."""

    def state(self, optimizers: Iterable[Optimizer]) -> None:
        """Leaves moments alone: they belong to the dense values."""

    def prepare(self) -> None:
        """What comes before an optimizer step: the dense values go in."""
        super().prepare()
        self.insert()

    def settle(self) -> None:
        """Takes the dense values out where no step followed, as when a scaler skips it."""
        if self._inside:
            self.weights()

    def dense(self, name: str) -> Tensor:
        """One parameter's dense values, whether they stand in it or not; not to be changed."""
        return self._latest(name) if name in self._dense else self.data(name)

    def dense_values(self) -> dict[str, Tensor]:
        """The dense values at pruned places, compact, on the CPU."""
        return {name: self._latest(name)[~self.mask(name)].cpu() for name in self._dense}

    @torch.no_grad()
    def load_dense_values(self, values: Mapping[str, Tensor]) -> None:
        """Takes what `dense_values` gave, under the masks of the same moment."""
        for name, dense in self._dense.items():
            dense.copy_(self.data(name))
            dense[~self.mask(name)] = values[name].to(dense.device, dense.dtype)

    def _latest(self, name: str) -> Tensor:
        """The dense values, with what stands in the parameter where it is kept."""
        parameter, dense = self.data(name), self._dense[name]
        if self._inside:
            return parameter
        if dense.device != parameter.device or dense.dtype != parameter.dtype:
            dense = self._dense[name] = dense.to(parameter)
        return torch.where(self.mask(name), parameter, dense)


def dense_state(enforcer: Enforcer) -> dict[str, Any] | None:
    """What a soft enforcer saves; None for any other."""
    return enforcer.dense_values() if isinstance(enforcer, SoftEnforcer) else None
