# SPDX-License-Identifier: MIT
"""Metrics of masks, for torchmetrics: Sparsity, EffectiveMACs, MaskOverlap."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from regrow.masks.masks import Masks
from regrow.utils.errors import StateError


class Sparsity(Metric):
    """Pruned fraction, pruned / total, counted by masks and not by zeros.

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
        """Add bool masks by parameter name, True = kept."""
        masks = _as_masks(masks)
        self.pruned += masks.pruned
        self.total += masks.total

    def compute(self) -> Tensor:
        """Compute the fraction; 0 without an update."""
        return self.pruned / self.total.clamp_min(1)


class EffectiveMACs(Metric):
    """MACs of one example with a sparse kernel: sum of positions x kept weights.

    The result is the mean over updates.

    Args:
        positions: Output positions by parameter name, from `regrow.profiling.macs.positions`.
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
        """Add bool masks by parameter name, True = kept."""
        masks = _as_masks(masks)
        if len(masks) and not self.positions.keys() & masks.keys():
            raise StateError(
                f"positions= has none of {', '.join(masks)}, only "
                f"{', '.join(self.positions) or 'nothing'}: are they of another model?"
            )
        kept = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
        macs = sum(self.positions.get(name, 0.0) * count for name, count in kept.items())
        self.macs += round(macs + self.rest)
        self.updates += 1

    def compute(self) -> Tensor:
        """Compute the mean over updates; 0 without an update."""
        return self.macs / self.updates.clamp_min(1)


class MaskOverlap(Metric):
    """Jaccard index of two sets of masks: positions kept by both / kept by any.

    Raises:
        StateError: On update, if the masks have different names or shapes.

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
        """Add two mappings of bool masks by parameter name, True = kept."""
        masks, others = _as_masks(masks), _as_masks(others)
        masks.check(others)
        for name, mask in masks.items():
            other = others[name].to(mask.device)
            self.both += int((mask & other).count_nonzero())
            self.any += int((mask | other).count_nonzero())

    def compute(self) -> Tensor:
        """Compute the index; 1 if neither keeps anything."""
        return torch.where(self.any > 0, self.both / self.any.clamp_min(1), 1.0)


def _as_masks(masks: Mapping[str, Tensor]) -> Masks:
    return masks if isinstance(masks, Masks) else Masks(masks)
