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
    config: PruningConfig,
    targets: Sequence[Target],
    kept: Sequence[Tensor | None],
    sparsity: float,
    own: Mapping[str, float],
    event: int,
) -> list[Tensor]:
    """Compute the next bool masks of some parameters; pruned weights stay pruned.

    Args:
        config: Validated settings.
        targets: The parameters.
        kept: Present working masks (non-zero = kept), None where nothing is pruned.
        sparsity: Of the targets without a separate sparsity.
        own: Sparsity of the others, by name.
        event: Number of the event, for random draws.
    """
    granularity = make_granularity(config.granularity)
    whole = isinstance(granularity, Weight)
    dims = [target.input_dim for target in targets]
    # the weights themselves are ranked by magnitude, which saves a copy of all of them
    by_magnitude = config.criterion is magnitude and whole and config.distribution != "lamp"
    scores = [_scores(config, target, by_magnitude, event) for target in targets]
    alive, units = list(kept), scores  # in units from here on
    if not whole:
        units = [units_of(granularity, s, d) for s, d in zip(scores, dims, strict=True)]
        alive = [
            None if k is None else granularity.kept_units(k != 0, d)
            for k, d in zip(kept, dims, strict=True)
        ]
    if config.distribution == "lamp":
        computed = [unit for unit in units if isinstance(unit, Tensor)]  # all, see `_scores`
        layers = zip(computed, alive, targets, strict=True)
        units = [lamp_scores(unit, live, target.name) for unit, live, target in layers]
    masks: dict[int, Tensor] = {}
    pools, least = _pools(config, granularity, targets, units, alive, sparsity, own)
    for pool in pools:
        chosen = global_topk_masks(
            [units[i] for i in pool.layers],
            pool.pruned,
            [alive[i] for i in pool.layers],
            magnitude=by_magnitude,
            min_keep=[least[i] for i in pool.layers],
            names=[targets[i].name for i in pool.layers],
            shards=[targets[i].shard for i in pool.layers],
        )
        masks |= zip(pool.layers, chosen, strict=True)
    del units  # frees memory for the masks
    if not whole:
        for i, mask in masks.items():
            before, now = alive[i], kept[i]
            units_kept = mask if before is None else mask | ~before
            mask = mask_from_units(granularity, units_kept, scores[i], dims[i])
            masks[i] = mask if now is None else mask.logical_and_(now != 0)
    return [masks[i] for i in range(len(targets))]


def _scores(config: PruningConfig, target: Target, by_magnitude: bool, event: int) -> ScoresLike:
    """Compute the scores of one target, lazily where possible."""
    if by_magnitude:
        return target.weight
    criterion = get_criterion(config.criterion)
    # LAMP sorts whole layers
    compute = compute_scores if config.distribution == "lamp" else lazy_criterion_scores
    weight, grad = target.parameter.detach(), target.parameter.grad
    return compute(criterion, target.name, weight, grad, (config.seed, event))


def _pools(
    config: PruningConfig,
    granularity: Granularity,
    targets: Sequence[Target],
    units: Sequence[ScoresLike],
    alive: Sequence[Tensor | None],
    sparsity: float,
    own: Mapping[str, float],
) -> tuple[list[Pool], list[int]]:
    """Distribute a sparsity over layers, as numbers of units; also return how many must stay."""
    totals = ShardedCounts([target.shard for target in targets])
    here = [as_lazy(unit).like.numel() for unit in units]
    sizes = totals.sums(here)
    pruned = totals.sums(
        0 if live is None else size - int(live.count_nonzero())
        for size, live in zip(here, alive, strict=True)
    )
    # of the units of n:m groups, which keep n weights, fewer need to stay
    share = 1 - (1 - config.min_density) / granularity.limit
    layers = [
        LayerSize(
            target.name,
            tuple(target.parameter.shape),
            size,
            n_pruned,
            max(granularity.least, 0 if target.name in own else math.ceil(share * size - 1e-6)),
        )
        for target, size, n_pruned in zip(targets, sizes, pruned, strict=True)
    ]
    rest = [i for i, target in enumerate(targets) if target.name not in own]
    pools: list[Pool] = []
    if rest:
        distribute = DISTRIBUTIONS[config.distribution]
        for pool in distribute([layers[i] for i in rest], sparsity / granularity.limit):
            pools.append(Pool(tuple(rest[i] for i in pool.layers), pool.pruned))
    for i, target in enumerate(targets):
        if target.name in own:
            [pool] = uniform([layers[i]], own[target.name] / granularity.limit)
            pools.append(Pool((i,), pool.pruned))
    return pools, [layer.least for layer in layers]
