# SPDX-License-Identifier: MIT
"""The vault: what pruning removed, so that it can be put back to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from regrow.errors import StateError
from regrow.targets import Target

MOMENT = "::"  # between a parameter's name and its moment's


class Vault:
    """The value each pruned weight had when it was pruned, in host memory.

    One compact tensor a parameter, in flat-index order of its pruned places: at most the removed
    weights' own bytes.

    Example:
        >>> vault, weight = Vault(), torch.tensor([1.0, 2.0, 3.0])
        >>> vault.keep("w", weight, torch.tensor([True, False, True]))
        >>> vault.values["w"]
        tensor([2.])
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self._pruned: dict[str, Tensor] = {}

    @property
    def bytes(self) -> int:
        """The size of the kept values."""
        return sum(values.numel() * values.element_size() for values in self.values.values())

    @torch.no_grad()
    def keep(self, name: str, weight: Tensor, mask: Tensor) -> None:
        """Takes in what a new mask removes, before the weight is zeroed.

        What was removed earlier keeps the value it had then; what comes back is forgotten.

        Args:
            name: The parameter's name.
            weight: Its present value, any shape.
            mask: The new mask of that shape, True = kept.
        """
        pruned = ~mask.reshape(-1).cpu()
        values = weight.detach().reshape(-1)[pruned.to(weight.device)].cpu()
        if name in self.values:
            before = self._pruned[name]
            values[before[pruned]] = self.values[name][pruned[before]]
        self.values[name], self._pruned[name] = values, pruned
        if not len(values):
            del self.values[name], self._pruned[name]

    @torch.no_grad()
    def restore(self, name: str, weight: Tensor) -> None:
        """Puts the removed values of one parameter back, in place, and forgets them.

        A place that was zero already, because another pruner masks it, is that pruner's to restore.
        """
        if name in self.values:
            places = self._pruned.pop(name).view(weight.shape).to(weight.device)
            values = self.values.pop(name).to(weight.device, weight.dtype)
            # -0.0 was a weight too; a moment that is 0 was one
            there = (values != 0) | values.signbit() | (MOMENT in name)
            weight[places] = torch.where(there, values, weight[places])

    def forget(self, name: str) -> None:
        """Drops what is held of one parameter, its moments too."""
        for key in [name, *self.moments(name)]:
            self.values.pop(key, None)
            self._pruned.pop(key, None)

    def moments(self, name: str) -> list[str]:
        """The keys under which moments of one parameter are held."""
        return [key for key in self.values if key.startswith(f"{name}{MOMENT}")]

    def values_like(self, name: str, like: Tensor) -> Tensor | None:
        """The removed values at their places in a tensor of zeros; None where there are none."""
        if name not in self.values:
            return None
        whole = torch.zeros_like(like)
        places = self._pruned[name].view(like.shape).to(like.device)
        whole[places] = self.values[name].to(like.device, like.dtype)
        return whole

    def whole(self, targets: Iterable[Target]) -> dict[str, Tensor]:
        """The removed values of parameters, by name, of the weight's shape."""
        found = {t.name: self.values_like(t.name, t.parameter.detach()) for t in targets}
        return {name: values for name, values in found.items() if values is not None}

    def state_dict(self) -> dict[str, Tensor]:
        """The values alone; where they belong is what the masks say."""
        return dict(self.values)

    def load_state_dict(self, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Takes what `state_dict` gave, with the masks of the same moment.

        Raises:
            StateError: If values and masks do not fit, naming the parameter.
        """
        values, places = {}, {}
        lost = [name for name, mask in masks.items() if name not in state and not mask.all()]
        for name in [*state, *lost]:
            mask = masks.get(name.partition(MOMENT)[0])
            pruned = torch.zeros(0, dtype=torch.bool) if mask is None else ~mask.reshape(-1).cpu()
            found = len(state.get(name, ()))
            if found != int(pruned.sum()):
                raise StateError(
                    f"the vault holds {found} removed values of {name}, its mask prunes "
                    f"{int(pruned.sum())}: the checkpoint is damaged or of another run"
                )
            if found:
                values[name], places[name] = state[name].clone(), pruned
        self.values, self._pruned = values, places
