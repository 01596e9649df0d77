# SPDX-License-Identifier: MIT
"""Choose a level for each layer, so that losses add up to the least within a budget of costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from regrow.utils.errors import ConfigError


class Knapsack:
    """A dynamic program over layers: one level each, the least sum of losses within a budget.

    With L_i(c) the least loss of the first i layers at a cost of at most c,
    L_i(c) = min over levels k of L_{i-1}(c - cost_ik) + loss_ik. Whole costs with a sum of at most
    `steps` give the exact minimum; others are rounded up to steps, so that no budget is exceeded.

    Args:
        losses: Loss of each level, by layer.
        costs: Cost of each level, by layer; 0 or more.
        steps: Resolution of the costs.

    Source: Frantar and Alistarh 2022 (SPDY), arXiv 2201.13096, section 3.2.

    Example:
        >>> Knapsack([[0.0, 1.0], [0.0, 5.0]], [[4, 2], [4, 2]]).choose(6)
        [1, 0]
    """

    def __init__(
        self,
        losses: Sequence[Sequence[float]],
        costs: Sequence[Sequence[float]],
        steps: int = 10_000,
    ) -> None:
        self.least = sum(map(min, costs))
        highest = sum(map(max, costs))
        whole = all(float(cost).is_integer() for layer in costs for cost in layer)
        self._step = 1.0 if whole and highest <= steps else max(highest, 1e-300) / steps
        rounded = [[math.ceil(cost / self._step - 1e-9) for cost in layer] for layer in costs]
        size = sum(map(max, rounded)) + 1
        best = np.zeros(size)
        pairs = [[*zip(*layer, strict=True)] for layer in zip(costs, losses, strict=True)]
        self._cheapest = [layer.index(min(layer)) for layer in pairs]
        self._choices: list[np.ndarray] = []
        self._rounded = rounded
        for loss, cost in zip(losses, rounded, strict=True):
            options = np.full((len(loss), size), np.inf)
            for level, taken in enumerate(cost):
                options[level, taken:] = best[: size - taken] + loss[level]
            self._choices.append(options.argmin(0))
            best = options.min(0)
        self._best = best

    def choose(self, budget: float) -> list[int]:
        """Return the level of each layer.

        Raises:
            ConfigError: If even the cheapest levels cost more than the budget.
        """
        left = min(math.floor(budget / self._step + 1e-9), len(self._best) - 1)
        if budget < self.least * (1 - 1e-9):
            raise ConfigError(f"the budget must be at least {self.least:g}, got {budget:g}")
        if not math.isfinite(self._best[left]):  # rounded up, even the cheapest exceed it
            return list(self._cheapest)
        levels = []
        for choices, cost in zip(reversed(self._choices), reversed(self._rounded), strict=True):
            levels.append(int(choices[left]))
            left -= cost[levels[-1]]
        return levels[::-1]
