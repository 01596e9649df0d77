# SPDX-License-Identifier: MIT
"""How much of a network sparse training has tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from regrow.masks import Masks


class Explored:
    """Which places were ever kept since sparse training began: one bool a place, in host memory.

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
            here = mask.cpu()
            self.ever[name] = here | self.ever[name] if name in self.ever else here
        places = sum(mask.numel() for mask in self.ever.values())
        return sum(int(mask.count_nonzero()) for mask in self.ever.values()) / max(1, places)

    def state_dict(self) -> dict[str, Any]:
        """Packed bits."""
        return Masks(self.ever).pack()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.ever = dict(Masks.unpack(state))
