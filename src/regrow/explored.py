# SPDX-License-Identifier: MIT
"""How much of a network sparse training has tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from regrow.masks import Masks
from regrow.sharding import as_part_of, is_cut, local
from regrow.shards import Shards


class Explored:
    """Which places were ever kept since sparse training began: one bool a place.

    In host memory; those of sharded parameters are cut and lie as they do.

    Source: Liu et al. 2021 (in-time over-parameterisation), section 3.1.

    Example:
        >>> explored = Explored()
        >>> explored.add({"w": Tensor([1, 0, 0, 0]) > 0})
        0.25
        >>> explored.add({"w": Tensor([0, 1, 0, 0]) > 0})
        0.5
    """

    def __init__(self) -> None:
        self.ever: dict[str, Tensor] = {}

    def add(self, masks: Mapping[str, Tensor]) -> float:
        """Takes in the masks of now; returns the fraction of places that were ever kept."""
        for name, mask in masks.items():
            here = mask if is_cut(mask) else mask.cpu()
            ever = local(here) | local(self.ever[name]) if name in self.ever else local(here)
            self.ever[name] = as_part_of(here, ever)
        found = Masks(self.ever)
        return (found.total - found.pruned) / max(1, found.total)

    def state_dict(self) -> dict[str, Any]:
        """Packed bits."""
        return Masks(self.ever).pack()

    def load_state_dict(
        self, state: Mapping[str, Any], parameters: Mapping[str, Tensor] | None = None
    ) -> None:
        """Takes what `state_dict` gave; of `parameters` that are sharded, their rows here."""
        held = parameters or {}
        parts = Masks.unpack(state, Shards(held))
        self.ever = {
            name: as_part_of(held[name], part) if name in held else part
            for name, part in parts.items()
        }
