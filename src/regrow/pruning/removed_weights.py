# SPDX-License-Identifier: MIT
"""RemovedWeights: values at pruned positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regrow.distributed.parameters import MOMENT as MOMENT
from regrow.masks.targets import Target
from regrow.utils.bits import as_numpy, integer_type
from regrow.utils.errors import StateError


class RemovedWeights:
    """The value each pruned weight had when it was pruned, in host memory.

    One compact tensor a parameter, in flat-index order of its pruned places: the removed weights'
    own bytes and no more, because which places these are is what the mask says that is held anyway.

    Example:
        >>> vault, weight = RemovedWeights(), torch.tensor([1.0, 2.0, 3.0])
        >>> vault.store("w", weight, torch.tensor([True, False, True]))
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
    def store(self, name: str, weight: Tensor, mask: Tensor, before: Tensor | None = None) -> None:
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
            del gone, pruned  # room for the copy
            values.masked_scatter_(still, _chosen(self.values[name], held).to(values.dtype))
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
        held = self.scatter_like(name, weight, mask)
        if held is not None:
            del self.values[name]
            if MOMENT in name:  # one that is 0 was a moment
                there = ~mask.to(weight.device)
            else:  # -0.0 was a weight
                there = (held != 0).logical_or_(held.signbit())
            torch.where(there, held, weight, out=weight)

    def drop(self, name: str) -> None:
        """Drops what is held of one parameter, its moments too."""
        for key in [name, *self.moments(name)]:
            self.values.pop(key, None)

    def moments(self, name: str) -> list[str]:
        """The keys under which moments of one parameter are held."""
        return [key for key in self.values if key.startswith(f"{name}{MOMENT}")]

    def scatter_like(self, name: str, like: Tensor, mask: Tensor) -> Tensor | None:
        """The removed values, under the present mask, in a tensor of zeros; None without any."""
        if name not in self.values:
            return None
        values = self.values[name].to(like.device, like.dtype)
        return torch.zeros_like(like).masked_scatter_(~mask.to(like.device), values)

    def has(self, target: Target) -> bool:
        """Whether removed values of a parameter are held, here or by other ranks."""
        return target.name in self.values or target.shard is not None

    def dense(self, target: Target, mask: Tensor) -> Tensor | None:
        """The removed values of a parameter with this mask, in a tensor of zeros of its shape."""
        if not self.has(target):
            return None
        values = self.scatter_like(target.name, target.weight, mask)
        return torch.zeros_like(target.weight) if values is None else values

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
                    f"the checkpoint holds {found} removed values of {name}, its mask prunes "
                    f"{pruned}: the checkpoint is damaged or of another run"
                )
            if found:
                values[name] = state[name].clone()
        self.values = values


def _chosen(values: Tensor, places: Tensor) -> Tensor:
    """`values[places]`, by their bits: NumPy, several times faster on the CPU, has no bfloat16."""
    bits = as_numpy(values.view(integer_type(values.dtype)))
    return torch.as_tensor(bits[as_numpy(places)]).view(values.dtype)
