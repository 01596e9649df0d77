# SPDX-License-Identifier: MIT
"""RemovedWeights: values at pruned positions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regrow.distributed.parameters import MOMENT as MOMENT
from regrow.utils.bits import as_numpy, integer_type
from regrow.utils.errors import StateError


class RemovedWeights:
    """The value that each pruned weight had when it was pruned, in host memory.

    `values` has one compact tensor per parameter, in flat-index order of its pruned positions, and
    of each optimizer moment by `name + MOMENT + key`; the positions are in the mask.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def store(self, name: str, weight: Tensor, mask: Tensor, before: Tensor | None = None) -> None:
        """Store the values that a new mask (True = kept) removes, before the weights are zeroed.

        Values removed earlier stay as stored; those of weights that return are dropped. `before` is
        the mask until now, required where values are stored already.
        """
        pruned = ~mask.reshape(-1).to(weight.device)
        values = _chosen(weight.detach().reshape(-1), pruned).cpu()
        if name in self.values:
            assert before is not None
            gone = ~before.reshape(-1).to(weight.device)
            still, stored = _chosen(gone, pruned).cpu(), _chosen(pruned, gone).cpu()
            del gone, pruned  # frees memory for the copy
            values.masked_scatter_(still, _chosen(self.values[name], stored).to(values.dtype))
        self.values[name] = values
        if not len(values):
            del self.values[name]

    @torch.no_grad()
    def restore(self, name: str, weight: Tensor, mask: Tensor) -> None:
        """Write the removed values of one parameter back, in place, and drop them.

        Values that were zero already, because another pruner masks them, are left to that pruner.
        """
        stored = self.scatter_like(name, weight, mask)
        if stored is not None:
            del self.values[name]
            if MOMENT in name:  # a moment may be 0
                there = ~mask.to(weight.device)
            else:  # a masked weight is +0.0, never -0.0
                there = (stored != 0).logical_or_(stored.signbit())
            torch.where(there, stored, weight, out=weight)

    def drop(self, name: str) -> None:
        """Drop the values of one parameter and its moments."""
        for key in [name, *self.moments(name)]:
            self.values.pop(key, None)

    def moments(self, name: str) -> list[str]:
        """Return the keys of the moments of one parameter."""
        return [key for key in self.values if key.startswith(f"{name}{MOMENT}")]

    def scatter_like(self, name: str, like: Tensor, mask: Tensor) -> Tensor | None:
        """Scatter the removed values into zeros by the present mask; None if there are none."""
        if name not in self.values:
            return None
        values = self.values[name].to(like.device, like.dtype)
        return torch.zeros_like(like).masked_scatter_(~mask.to(like.device), values)

    def state_dict(self) -> dict[str, Tensor]:
        """Return `values`."""
        return dict(self.values)

    def load_state_dict(self, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Restore the result of `state_dict`, with the masks saved at the same time."""
        values = {}
        lost = [name for name, mask in masks.items() if name not in state and not mask.all()]
        for name in [*state, *lost]:
            mask = masks.get(name.partition(MOMENT)[0])
            pruned = 0 if mask is None else mask.numel() - int(mask.count_nonzero())
            found = len(state.get(name, ()))
            if found != pruned:
                raise StateError(
                    f"the checkpoint has {found} removed values of {name}, its mask prunes "
                    f"{pruned}: the checkpoint is damaged or of another run"
                )
            if found:
                values[name] = state[name].clone()
        self.values = values


def _chosen(values: Tensor, places: Tensor) -> Tensor:
    """`values[places]` by their bits: NumPy is faster on the CPU, but has no bfloat16."""
    bits = as_numpy(values.view(integer_type(values.dtype)))
    return torch.as_tensor(bits[as_numpy(places)]).view(values.dtype)
