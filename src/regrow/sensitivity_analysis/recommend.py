# SPDX-License-Identifier: MIT
"""Recommend a sparsity for each layer from measured sensitivities."""

from __future__ import annotations

import math
from dataclasses import dataclass

from regrow.sensitivity_analysis.scan import Sensitivities, Sensitivity

_ROUNDING = 1e-9  # 0.97 - 0.96 is more than 0.01


@dataclass(frozen=True)
class Recommendation:
    """Recommended arguments of the pruning callbacks; of channels, only `exclude` applies."""

    layers: dict[str, float]  # sparsity of each layer
    exclude: list[str]  # patterns


def find_limit(row: Sensitivity, accuracy: float, max_drop: float) -> float:
    """Find the highest sparsity that, like all lower ones, loses at most `max_drop`.

    The present sparsity is the least; `accuracy` is that of the unchanged model.
    """
    best = row.sparsity
    for sparsity, found in sorted(row.accuracy.items()):
        if accuracy - found > max_drop + _ROUNDING:
            break
        best = max(best, sparsity)
    return best


def sort_by_limit(found: Sensitivities, max_drop: float) -> list[Sensitivity]:
    """Sort layers by their limit, highest first; equal ones by their mean accuracy."""

    def key(row: Sensitivity) -> tuple[float, float]:
        return -find_limit(row, found.accuracy, max_drop), -sum(row.accuracy.values())

    return sorted(found.rows, key=key)


def recommend(found: Sensitivities, max_drop: float) -> Recommendation:
    """Recommend the limit of each layer as its sparsity, and exclude layers without one.

    A heuristic to start from, with fine-tuning after it: layers were pruned one at a time, and
    pruning all of them loses more accuracy than pruning each alone.
    """
    limits = {row.name: find_limit(row, found.accuracy, max_drop) for row in found.rows}
    layers = {name: _short(value) for name, value in limits.items() if value}
    # "conv#2" is the second group of channels of layer "conv"
    exclude = [name.partition("#")[0] for name, value in limits.items() if not value]
    return Recommendation(layers, list(dict.fromkeys(exclude)))


def _short(sparsity: float) -> float:
    """Round up to four digits, so that a target is not below the present sparsity."""
    rounded = math.ceil(1e4 * sparsity - 1e-6) / 1e4
    return rounded if rounded < 1 else sparsity
