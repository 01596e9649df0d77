# SPDX-License-Identifier: MIT
"""Torchmetrics: Sparsity, EffectiveMACs, MaskOverlap."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from regrow.masks.masks import Masks
from regrow.utils.errors import StateError


class Sparsity(Metric):
    """The pruned fraction of all places: pruned / total, by masks and never by zeros.

    Example:
        >>> sparsity = Sparsity()
        >>> sparsity.update({"a": torch.tensor([True, False]), "b": torch.tensor([False, False])})
        >>> sparsity.compute()
        tensor(0.7500)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    pruned: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("pruned", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, masks: Mapping[str, Tensor]) -> None:
        """Takes bool masks by parameter name, True = kept."""
        masks = _checked(masks)
        self.pruned += masks.pruned
        self.total += masks.total

    def compute(self) -> Tensor:
        """The fraction, 0 where nothing was seen."""
        return self.pruned / self.total.clamp_min(1)


class EffectiveMACs(Metric):
    """Multiply-accumulates of one example that a sparse kernel would compute.

    The sum of positions x kept weights, the mean over updates.

    Args:
        positions: Output positions by parameter name, from `regrow.profiling.cost.positions`.
        rest: MACs of everything without a mask.

    Raises:
        StateError: On update, if no mask has positions.

    Example:
        >>> macs = EffectiveMACs({"fc.weight": 3.0}, rest=100)
        >>> macs.update({"fc.weight": torch.tensor([[True, False], [True, False]])})
        >>> macs.compute()
        tensor(106.)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    macs: Tensor
    updates: Tensor

    def __init__(self, positions: Mapping[str, float], rest: float = 0) -> None:
        super().__init__()
        self.positions, self.rest = dict(positions), rest
        self.add_state("macs", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("updates", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, masks: Mapping[str, Tensor]) -> None:
        """Takes bool masks by parameter name, True = kept."""
        masks = _checked(masks)
        if len(masks) and not self.positions.keys() & masks.keys():
            raise StateError(
                f"no positions are known of {', '.join(masks)}, only of "
                f"{', '.join(self.positions) or 'nothing'}: are they of another model?"
            )
        kept = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
        macs = sum(self.positions.get(name, 0.0) * count for name, count in kept.items())
        self.macs += round(macs + self.rest)
        self.updates += 1

    def compute(self) -> Tensor:
        """The mean over updates, 0 where there was none."""
        return self.macs / self.updates.clamp_min(1)


class MaskOverlap(Metric):
    """How alike two sets of masks are: Jaccard index of their kept places, kept by both / by any.

    1 = the same places, 0 = none in common.

    Raises:
        StateError: On update, if they are of different parameters, naming them.

    Example:
        >>> overlap = MaskOverlap()
        >>> one, other = torch.tensor([True, True, False]), torch.tensor([False, True, True])
        >>> overlap.update({"w": one}, {"w": other})
        >>> overlap.compute()
        tensor(0.3333)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    both: Tensor
    any: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("both", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("any", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, masks: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
        """Takes two mappings of bool masks with the same names and shapes, True = kept."""
        masks, others = _checked(masks), _checked(others)
        masks.check(others)
        for name, mask in masks.items():
            other = others[name].to(mask.device)
            self.both += int((mask & other).count_nonzero())
            self.any += int((mask | other).count_nonzero())

    def compute(self) -> Tensor:
        """The index; 1 where nothing is kept by either."""
        return torch.where(self.any > 0, self.both / self.any.clamp_min(1), 1.0)


def _checked(masks: Mapping[str, Tensor]) -> Masks:
    return masks if isinstance(masks, Masks) else Masks(masks)
