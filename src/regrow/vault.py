# SPDX-License-Identifier: MIT
"""The vault: what pruning removed, so that it can be put back to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from regrow.errors import StateError
from regrow.keys import array, integer_type
from regrow.shards import MOMENT as MOMENT
from regrow.targets import Target


class Vault:
    """The value each pruned weight had when it was pruned, in host memory.

    One compact tensor a parameter, in flat-index order of its pruned places: the removed weights'
    own bytes and no more, because which places these are is what the mask says that is held anyway.

    Example:
        >>> vault, weight = Vault(), torch.tensor([1.0, 2.0, 3.0])
        >>> vault.keep("w", weight, torch.tensor([True, False, True]))
        >>> vault.values["w"]
        tensor([2.])
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    @property
    def bytes(self) -> int:
        """The size of the kept values."""
        return sum(values.numel() * values.element_size() for values in self.values.values())

    @torch.no_grad()
    def keep(self, name: str, weight: Tensor, mask: Tensor, before: Tensor | None = None) -> None:
        """Takes in what a new mask removes, before the weight is zeroed.

        What was removed earlier keeps the value it had then; what comes back is forgotten.

        Args:
            name: The parameter's name.
            weight: Its present value, any shape.
            mask: The new mask of that shape, True = kept.
            before: The mask until now; needed where values are held already.
        """
        pruned = ~mask.reshape(-1).to(weight.device)
        values = _chosen(weight.detach().reshape(-1), pruned).cpu()
        if name in self.values:
            assert before is not None
            gone = ~before.reshape(-1).to(weight.device)
            still, held = _chosen(gone, pruned).cpu(), _chosen(pruned, gone).cpu()
            values[still] = self.values[name][held]
        self.values[name] = values
        if not len(values):
            del self.values[name]

    @torch.no_grad()
    def restore(self, name: str, weight: Tensor, mask: Tensor) -> None:
        """Puts the removed values of one parameter back, in place, and forgets them.

        A place that was zero already, because another pruner masks it, is that pruner's to restore.

        Args:
            name: The parameter's name.
            weight: Where they go.
            mask: Its present mask.
        """
        if name in self.values:
            places = ~mask.to(weight.device)
            values = self.values.pop(name).to(weight.device, weight.dtype)
            # -0.0 was a weight too; a moment that is 0 was one
            there = (values != 0) | values.signbit() | (MOMENT in name)
            weight[places] = torch.where(there, values, weight[places])

    def forget(self, name: str) -> None:
        """Drops what is held of one parameter, its moments too."""
        for key in [name, *self.moments(name)]:
            self.values.pop(key, None)

    def moments(self, name: str) -> list[str]:
        """The keys under which moments of one parameter are held."""
        return [key for key in self.values if key.startswith(f"{name}{MOMENT}")]

    def values_like(self, name: str, like: Tensor, mask: Tensor) -> Tensor | None:
        """The removed values, under the present mask, in a tensor of zeros; None without any."""
        if name not in self.values:
            return None
        whole = torch.zeros_like(like)
        whole[~mask.to(like.device)] = self.values[name].to(like.device, like.dtype)
        return whole

    def whole(self, targets: Iterable[Target], masks: Iterable[Tensor]) -> dict[str, Tensor]:
        """The removed values of parameters with these masks, by name, of the weight's shape."""
        found = {}
        for target, mask in zip(targets, masks, strict=True):
            values = self.values_like(target.name, target.weight, mask)
            if values is None and target.shard is not None:  # other ranks may hold some
                values = torch.zeros_like(target.weight)
            if values is not None:
                found[target.name] = values
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """The values alone; where they belong is what the masks say."""
        return dict(self.values)

    def load_state_dict(self, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Takes what `state_dict` gave, with the masks of the same moment.

        Raises:
            StateError: If values and masks do not fit, naming the parameter.
        """
        values = {}
        lost = [name for name, mask in masks.items() if name not in state and not mask.all()]
        for name in [*state, *lost]:
            mask = masks.get(name.partition(MOMENT)[0])
            pruned = 0 if mask is None else mask.numel() - int(mask.count_nonzero())
            found = len(state.get(name, ()))
            if found != pruned:
                raise StateError(
                    f"the vault holds {found} removed values of {name}, its mask prunes "
                    f"{pruned}: the checkpoint is damaged or of another run"
                )
            if found:
                values[name] = state[name].clone()
        self.values = values


def _chosen(values: Tensor, places: Tensor) -> Tensor:
    """`values[places]`, by their bits: NumPy, several times faster on the CPU, has no bfloat16."""
    bits = array(values.view(integer_type(values.dtype)))
    return torch.as_tensor(bits[array(places)]).view(values.dtype)
