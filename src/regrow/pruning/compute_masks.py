# SPDX-License-Identifier: MIT
"""Compute masks: scores -> units -> masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regrow.criteria.base import compute_scores, get_criterion, lazy_criterion_scores
from regrow.criteria.elementwise import magnitude
from regrow.distributed.sharded_counts import ShardedCounts
from regrow.masks.distributions import DISTRIBUTIONS, LayerSize, Pool, lamp_scores, uniform
from regrow.masks.granularity import (
    Granularity,
    Weight,
    make_granularity,
    mask_from_units,
    units_of,
)
from regrow.masks.lazy_scores import ScoresLike, as_lazy
from regrow.masks.targets import Target
from regrow.masks.topk import global_topk_masks
from regrow.pruning.config import PruningConfig


@torch.no_grad()
def choose_masks(
    method: PruningConfig,
    targets: Sequence[Target],
    kept: Sequence[Tensor | None],
    sparsity: float,
    own: Mapping[str, float],
    event: int,
    threshold: float | None = None,
) -> list[Tensor]:
    """Compute the next bool masks of some parameters; pruned weights stay pruned.

    Args:
        method: Validated settings.
        targets: The parameters.
        kept: Present working masks (non-zero = kept), None where nothing is pruned.
        sparsity: Of the targets without a separate sparsity.
        own: Sparsity of the others, by name.
        event: Number of the event, for random draws.
        threshold: Prune the scores below it, as far as `min_density` allows, instead of a fraction.

    Raises:
        ConfigError, StateError: See `Pruner.prune_to`.
    """
    granularity = make_granularity(method.granularity)
    ranks_weights = threshold is None and isinstance(granularity, Weight)
    # the weights themselves are ranked by magnitude, which saves a copy of all of them
    by_magnitude = method.criterion is magnitude and ranks_weights and method.distribution != "lamp"
    scores = [_scores(method, target, by_magnitude, event) for target in targets]
    units, alive = _units(method, granularity, targets, scores, kept)
    layers = _layer_sizes(method, granularity, targets, units, alive, own)
    if threshold is None:
        pools = _pools(method, layers, sparsity / granularity.limit, own, granularity.limit)
    else:
        pools = _pools_below(threshold, targets, layers, units, alive)
    masks: dict[int, Tensor] = {}
    for pool in pools:
        chosen = global_topk_masks(
            [units[i] for i in pool.layers],
            pool.pruned,
            [alive[i] for i in pool.layers],
            magnitude=by_magnitude,
            min_keep=[layers[i].least for i in pool.layers],
            names=[targets[i].name for i in pool.layers],
            shards=[targets[i].shard for i in pool.layers],
        )
        masks |= zip(pool.layers, chosen, strict=True)
    del units  # frees memory for the masks
    if not isinstance(granularity, Weight):
        for i, mask in masks.items():
            before, now = alive[i], kept[i]
            units_kept = mask if before is None else mask | ~before
            mask = mask_from_units(granularity, units_kept, scores[i], targets[i].input_dim)
            masks[i] = mask if now is None else mask.logical_and_(now != 0)
    return [masks[i] for i in range(len(targets))]


def _units(
    method: PruningConfig,
    granularity: Granularity,
    targets: Sequence[Target],
    scores: Sequence[ScoresLike],
    kept: Sequence[Tensor | None],
) -> tuple[Sequence[ScoresLike], Sequence[Tensor | None]]:
    """Turn scores and masks of weights into scores of units, and which of them are not pruned."""
    units, alive = list(scores), list(kept)
    if not isinstance(granularity, Weight):
        dims = [target.input_dim for target in targets]
        units = [units_of(granularity, s, d) for s, d in zip(scores, dims, strict=True)]
        alive = [
            None if k is None else granularity.kept_units(k != 0, d)
            for k, d in zip(kept, dims, strict=True)
        ]
    if method.distribution == "lamp":
        computed = [unit for unit in units if isinstance(unit, Tensor)]  # all, see `_scores`
        layers = zip(computed, alive, targets, strict=True)
        units = [lamp_scores(unit, live, target.name) for unit, live, target in layers]
    return units, alive


def _scores(method: PruningConfig, target: Target, by_magnitude: bool, event: int) -> ScoresLike:
    """Compute the scores of one target, lazily where possible."""
    if by_magnitude:
        return target.weight
    criterion = get_criterion(method.criterion)
    # LAMP sorts whole layers
    compute = compute_scores if method.distribution == "lamp" else lazy_criterion_scores
    weight, grad = target.parameter.detach(), target.parameter.grad
    return compute(criterion, target.name, weight, grad, (method.seed, event))


def _layer_sizes(
    method: PruningConfig,
    granularity: Granularity,
    targets: Sequence[Target],
    units: Sequence[ScoresLike],
    alive: Sequence[Tensor | None],
    own: Mapping[str, float],
) -> list[LayerSize]:
    """Count the units of each layer: all, pruned ones, and how many must stay."""
    totals = ShardedCounts([target.shard for target in targets])
    here = [as_lazy(unit).like.numel() for unit in units]
    sizes = totals.sums(here)
    pruned = totals.sums(
        0 if live is None else size - int(live.count_nonzero())
        for size, live in zip(here, alive, strict=True)
    )
    # of the units of n:m groups, which keep n weights, fewer need to stay
    share = 1 - (1 - method.min_density) / granularity.limit
    return [
        LayerSize(
            target.name,
            tuple(target.parameter.shape),
            size,
            n_pruned,
            max(granularity.least, 0 if target.name in own else math.ceil(share * size - 1e-6)),
        )
        for target, size, n_pruned in zip(targets, sizes, pruned, strict=True)
    ]


def _pools(
    method: PruningConfig,
    layers: Sequence[LayerSize],
    share: float,
    own: Mapping[str, float],
    limit: float,
) -> list[Pool]:
    """Distribute a share of the units over layers; those with a separate sparsity get their own."""
    rest = [i for i, layer in enumerate(layers) if layer.name not in own]
    pools: list[Pool] = []
    if rest:
        for pool in DISTRIBUTIONS[method.distribution]([layers[i] for i in rest], share):
            pools.append(Pool(tuple(rest[i] for i in pool.layers), pool.pruned))
    for i, layer in enumerate(layers):
        if layer.name in own:
            [pool] = uniform([layer], own[layer.name] / limit)
            pools.append(Pool((i,), pool.pruned))
    return pools


def _pools_below(
    threshold: float,
    targets: Sequence[Target],
    layers: Sequence[LayerSize],
    units: Sequence[ScoresLike],
    alive: Sequence[Tensor | None],
) -> list[Pool]:
    """Make a pool of each layer that prunes its scores below a threshold, but for its minimum."""
    counts = []
    for unit, live in zip(map(as_lazy, units), alive, strict=True):
        scores = unit.new_pass()(*unit.inputs)
        below = scores.to(torch.promote_types(scores.dtype, torch.float32)) < threshold
        counts.append(int((below if live is None else below & (live != 0)).count_nonzero()))
    sums = ShardedCounts([target.shard for target in targets]).sums(counts)
    return [
        Pool((i,), max(layer.pruned, min(layer.pruned + count, layer.units - layer.least)))
        for i, (layer, count) in enumerate(zip(layers, sums, strict=True))
    ]
