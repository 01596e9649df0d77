# SPDX-License-Identifier: MIT
"""Distributions of a target over layers: global, uniform, ERK, LAMP.

A distribution turns layer sizes and a sparsity into pools. Layers of one pool are ranked together;
a pool of one layer has a separate target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regrow.utils.errors import ConfigError, StateError


class Pool(NamedTuple):
    """Indices of layers that are ranked together, and how many of their units are pruned."""

    layers: tuple[int, ...]
    pruned: int


class LayerSize(NamedTuple):
    """The sizes of a layer."""

    name: str  # for messages
    shape: tuple[int, ...]  # of the weight, `(out, in, kh, kw)` or `(out, in)`
    units: int  # number of prunable units
    pruned: int = 0  # of them, already
    least: int = 1  # number of units that must be kept


Distribution = Callable[[Sequence[LayerSize], float], list[Pool]]


def global_pool(layers: Sequence[LayerSize], sparsity: float) -> list[Pool]:
    """Put all layers into one pool (global ranking)."""
    return [Pool(tuple(range(len(layers))), _pruned_count(layers, sparsity))]


def uniform(layers: Sequence[LayerSize], sparsity: float) -> list[Pool]:
    """Prune the same fraction of every layer; by largest remainders the sum is round(s n)."""
    return _separate_pools(layers, [sparsity * layer.units for layer in layers], sparsity)


def erk(layers: Sequence[LayerSize], sparsity: float) -> list[Pool]:
    """Erdos-Renyi-Kernel: density proportional to (in + out + kh + kw) / (in out kh kw).

    Layers whose density would exceed 1 stay dense; the others are pruned more.

    Source: Evci et al. 2020 (RigL), section 3; Mocanu et al. 2018 for linear layers.
    """
    densities = erk_densities([layer.shape for layer in layers], sparsity)
    ideal = [(1 - density) * layer.units for density, layer in zip(densities, layers, strict=True)]
    return _separate_pools(layers, ideal, sparsity)


def erk_densities(shapes: Sequence[Sequence[int]], sparsity: float) -> list[float]:
    """Compute the densities of `erk`, before rounding to whole weights."""
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while True:
        rest = [i for i in range(len(sizes)) if i not in dense]
        budget = (1 - sparsity) * sum(sizes) - sum(sizes[i] for i in dense)
        scale = budget / sum(raw[i] * sizes[i] for i in rest) if rest else 0.0
        most = max((raw[i] for i in rest), default=0.0)
        if scale * most <= 1:
            return [1.0 if i in dense else scale * raw[i] for i in range(len(sizes))]
        dense |= {i for i in rest if raw[i] == most}


def lamp_scores(scores: Tensor, kept: Tensor | None = None, name: str = "a layer") -> Tensor:
    """Make scores comparable across layers: s^2 / sum of all u^2 with u >= s in the layer.

    The largest score of each layer becomes 1. Ties are summed in flat order. The result is float64
    (8 bytes each), for the precision of sums over a layer.

    Source: Lee et al. 2021, eq. 1.
    """
    flat = scores.detach().reshape(-1).double()
    if bool((flat < 0).any()):
        raise StateError(
            "LAMP compares squared scores, and this criterion has negative ones: write "
            "distribution='global', 'uniform' or 'erk'"
        )
    squares = flat.square()
    if kept is not None:
        squares = squares.where(kept.reshape(-1) != 0, 0.0)
    infinite = int(squares.isinf().count_nonzero())
    if infinite:
        raise StateError(
            f"{name} has {infinite} scores that are infinite once squared, and LAMP divides by "
            "sums of squares: check its weights (has the loss diverged?), or write "
            "distribution='global', 'uniform' or 'erk'"
        )
    order = squares.argsort(stable=True)
    ranked = squares[order]
    above = ranked.flip(0).cumsum(0).flip(0)
    result = torch.empty_like(squares)
    result[order] = ranked / above.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.empty_like(scores, dtype=torch.float64).copy_(result.view(scores.shape))


DISTRIBUTIONS: Mapping[str, Distribution] = {
    "global": global_pool,
    "uniform": uniform,
    "erk": erk,
    "lamp": global_pool,
}


def _most(layer: LayerSize) -> int:
    """The number of units that may be pruned; earlier pruning may have gone further."""
    return max(layer.pruned, layer.units - min(layer.least, layer.units))


def _pruned_count(layers: Sequence[LayerSize], sparsity: float) -> int:
    """Return how many units of all layers a sparsity prunes, and check that it is possible."""
    total = sum(layer.units for layer in layers)
    count = round(sparsity * total)
    most = sum(map(_most, layers))
    if count > most:
        raise ConfigError(
            f"{count} of {total} cannot be pruned: each of {len(layers)} layers keeps at least "
            f"{max(layer.least for layer in layers)}, which allows sparsity {most / total:.6g} at "
            "most: write a lower sparsity or min_density, or exclude small layers"
        )
    return count


def _separate_pools(
    layers: Sequence[LayerSize], ideal: Sequence[float], sparsity: float
) -> list[Pool]:
    count = _pruned_count(layers, sparsity)
    least = [layer.pruned for layer in layers]
    most = [*map(_most, layers)]
    return [Pool((i,), n) for i, n in enumerate(largest_remainders(ideal, count, least, most))]


def largest_remainders(
    ideal: Sequence[float], total: int, least: Sequence[int], most: Sequence[int]
) -> list[int]:
    """Round `ideal` to integers that sum to `total`, by largest remainders within bounds."""
    if not sum(least) <= total <= sum(most):
        raise ConfigError(
            f"{total} cannot be shared among {len(ideal)} layers that take between {sum(least)} "
            f"and {sum(most)} together"
        )
    counts = [
        min(max(math.floor(x), low), high) for x, low, high in zip(ideal, least, most, strict=True)
    ]
    remainder = [x - math.floor(x) for x in ideal]
    while (gap := total - sum(counts)) != 0:
        sign = 1 if gap > 0 else -1
        room = [
            high - n if sign > 0 else n - low
            for n, low, high in zip(counts, least, most, strict=True)
        ]
        adjustable = [i for i in range(len(counts)) if room[i] > 0]
        adjustable.sort(key=lambda i: -sign * remainder[i])
        share = abs(gap) // len(adjustable)
        for i in adjustable if share else adjustable[: abs(gap)]:
            counts[i] += sign * min(room[i], max(1, share))
    return counts
