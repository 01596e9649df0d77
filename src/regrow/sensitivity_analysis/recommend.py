# SPDX-License-Identifier: MIT
"""Limits per layer, next settings."""

from __future__ import annotations

import math
from dataclasses import dataclass

from regrow.sensitivity_analysis.scan import Sensitivities, Sensitivity

_ROUNDING = 1e-9  # 0.97 - 0.96 is more than 0.01


@dataclass(frozen=True)
class Recommendation:
    """What to prune next, in the words of the pruning callbacks.

    Attributes:
        layers: Own sparsity of each layer, for `MagnitudePruning(layers=...)`.
        exclude: Patterns of what is left alone.
    """

    layers: dict[str, float]
    exclude: list[str]


def limit(row: Sensitivity, accuracy: float, max_drop: float) -> float:
    """The highest sparsity that, like all lower ones tried, loses no more than `max_drop`.

    Args:
        row: The layer.
        accuracy: Of the model as it is.
        max_drop: What may be lost, in the unit of `accuracy`.

    Returns:
        What is pruned already, where no more holds.

    Example:
        >>> row = Sensitivity("fc", 100, 0.0, 100, 0.5, None, {0.5: 0.9, 0.7: 0.88, 0.9: 0.9})
        >>> limit(row, 0.9, 0.01), limit(row, 0.9, 0.02)
        (0.5, 0.9)
    """
    best = row.sparsity
    for sparsity, found in sorted(row.accuracy.items()):
        if accuracy - found > max_drop + _ROUNDING:
            break
        best = max(best, sparsity)
    return best


def ranked(found: Sensitivities, max_drop: float) -> list[Sensitivity]:
    """The layers that can be pruned hardest first; of equal ones those that lose less at once."""

    def harm(row: Sensitivity) -> tuple[float, float]:
        return -limit(row, found.accuracy, max_drop), -sum(row.accuracy.values())

    return sorted(found.rows, key=harm)


def next_step(found: Sensitivities, max_drop: float) -> Recommendation:
    """Each layer's own limit as its target; what holds nothing is excluded.

    A heuristic: each layer was tried alone, and together they cost more than each of them. It is
    where to begin, with fine-tuning after it.

    Args:
        found: Of weights or of channels; pruning channels takes the excluded alone.
        max_drop: What each layer may lose.

    Example:
        >>> rows = [Sensitivity("a", 9, 0.0, 9, 0.5, None, {0.5: 0.9, 0.7: 0.8}),
        ...         Sensitivity("b#2", 9, 0.0, 9, 0.5, None, {0.5: 0.1, 0.7: 0.1})]
        >>> next_step(Sensitivities(0.9, tuple(rows), {}), 0.01)
        Recommendation(layers={'a': 0.5}, exclude=['b'])
    """
    limits = {row.name: limit(row, found.accuracy, max_drop) for row in found.rows}
    layers = {name: _short(value) for name, value in limits.items() if value}
    # a group of channels may be one of several of its layer
    exclude = [name.partition("#")[0] for name, value in limits.items() if not value]
    return Recommendation(layers, list(dict.fromkeys(exclude)))


def _short(sparsity: float) -> float:
    """Four digits, rounded up: a target is never below what is pruned already."""
    rounded = math.ceil(1e4 * sparsity - 1e-6) / 1e4
    return rounded if rounded < 1 else sparsity
