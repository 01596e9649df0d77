# SPDX-License-Identifier: MIT
"""Metrics of masks, for torchmetrics: Sparsity, EffectiveMACs, MaskOverlap."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from regrow.profiling.pruned_counts import as_masks
from regrow.utils.errors import StateError


class _Ratio(Metric):
    """A ratio of two counts, each summed over updates and processes."""

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False
    part: Tensor
    whole: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("part", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("whole", torch.tensor(0), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Compute the ratio; 0 without an update."""
        return self.part / self.whole.clamp_min(1)


class Sparsity(_Ratio):
    """Pruned fraction, pruned / total, counted by masks and not by zeros.

    Example:
        >>> sparsity = Sparsity()
        >>> sparsity.update({"a": torch.tensor([True, False]), "b": torch.tensor([False, False])})
        >>> sparsity.compute()
        tensor(0.7500)
    """

    def update(self, masks: Mapping[str, Tensor]) -> None:
        """Add bool masks by parameter name, True = kept."""
        masks = as_masks(masks)
        self.part += masks.pruned
        self.whole += masks.total


class EffectiveMACs(_Ratio):
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

    higher_is_better = False

    def __init__(self, positions: Mapping[str, float], rest: float = 0) -> None:
        super().__init__()
        self.positions, self.rest = dict(positions), rest

    def update(self, masks: Mapping[str, Tensor]) -> None:
        """Add bool masks by parameter name, True = kept."""
        masks = as_masks(masks)
        if len(masks) and not self.positions.keys() & masks.keys():
            raise StateError(
                f"positions= has none of {', '.join(masks)}, only "
                f"{', '.join(self.positions) or 'nothing'}: are they of another model?"
            )
        kept = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
        macs = sum(self.positions.get(name, 0.0) * count for name, count in kept.items())
        self.part += round(macs + self.rest)
        self.whole += 1


class MaskOverlap(_Ratio):
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

    def update(self, masks: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
        """Add two mappings of bool masks by parameter name, True = kept."""
        masks, others = as_masks(masks), as_masks(others)
        masks.check(others)
        for name, mask in masks.items():
            other = others[name].to(mask.device)
            self.part += int((mask & other).count_nonzero())
            self.whole += int((mask | other).count_nonzero())

    def compute(self) -> Tensor:
        """Compute the index; 1 if neither keeps anything."""
        return torch.where(self.whole > 0, super().compute(), 1.0)
