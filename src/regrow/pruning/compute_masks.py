# SPDX-License-Identifier: MIT
"""Scores -> units -> masks."""

from __future__ import annotations

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
) -> list[Tensor]:
    """Compute masks: weights -> scores -> units -> masks.

    Args:
        method: Validated settings.
        targets: What is pruned.
        kept: Present working masks (non-zero = kept), None where nothing is pruned.
        sparsity: For all targets without a target of their own.
        own: Sparsity of the others, by name.
        event: Number of the event, for random draws.

    Returns:
        One bool mask a target; what was pruned stays pruned.

    Raises:
        ConfigError: If the sparsity is out of reach, or below the present one.
        StateError: For NaN scores or missing gradients, naming the layer.
    """
    granularity = make_granularity(method.granularity)
    whole = isinstance(granularity, Weight)
    dims = [target.input_dim for target in targets]
    # magnitudes are read off the weights' bits, which saves a copy of all of them
    by_magnitude = method.criterion is magnitude and whole and method.distribution != "lamp"
    scores = [_scores(method, target, by_magnitude, event) for target in targets]
    alive, units = list(kept), scores
    if not whole:
        units = [units_of(granularity, s, d) for s, d in zip(scores, dims, strict=True)]
        alive = [
            None if k is None else granularity.kept_units(k != 0, d)
            for k, d in zip(kept, dims, strict=True)
        ]
    if method.distribution == "lamp":
        stand = [unit for unit in units if isinstance(unit, Tensor)]  # `_scores` sees to that
        names = [target.name for target in targets]
        units = [lamp_scores(*layer) for layer in zip(stand, alive, names, strict=True)]
    masks: dict[int, Tensor] = {}
    shards = [target.shard for target in targets]
    for pool in _pools(method, granularity, targets, units, alive, sparsity, own):
        found = global_topk_masks(
            [units[i] for i in pool.layers],
            pool.pruned,
            [alive[i] for i in pool.layers],
            magnitude=by_magnitude,
            min_keep=granularity.least,
            names=[targets[i].name for i in pool.layers],
            shards=[shards[i] for i in pool.layers],
        )
        masks |= zip(pool.layers, found, strict=True)
    del units  # the masks need their room
    if not whole:
        for i, mask in masks.items():
            masks[i] = _weights_of(granularity, mask, alive[i], kept[i], scores[i], dims[i])
    return [masks[i] for i in range(len(targets))]


def _weights_of(
    granularity: Granularity,
    units: Tensor,
    before: Tensor | None,
    kept: Tensor | None,
    scores: ScoresLike,
    dim: int | None,
) -> Tensor:
    """The mask of weights that a mask of units means; pruned weights stay pruned."""
    unchanged = units if before is None else units | ~before
    mask = mask_from_units(granularity, unchanged, scores, dim)
    return mask if kept is None else mask.logical_and_(kept != 0)


def _scores(method: PruningConfig, target: Target, by_magnitude: bool, event: int) -> ScoresLike:
    """What ranks the weights of one target."""
    if by_magnitude:
        return target.weight
    criterion = get_criterion(method.criterion)
    take = (
        compute_scores if method.distribution == "lamp" else lazy_criterion_scores
    )  # LAMP sorts whole layers
    weight, grad = target.parameter.detach(), target.parameter.grad
    return take(criterion, target.name, weight, grad, (method.seed, event))


def _pools(
    method: PruningConfig,
    granularity: Granularity,
    targets: Sequence[Target],
    units: Sequence[ScoresLike],
    alive: Sequence[Tensor | None],
    sparsity: float,
    own: Mapping[str, float],
) -> list[Pool]:
    """Who is ranked with whom; a sparsity of weights becomes one of units."""
    everywhere = ShardedCounts([target.shard for target in targets])
    here = [as_lazy(unit).like.numel() for unit in units]
    sizes = everywhere.sums(here)
    pruned = everywhere.sums(
        0 if live is None else size - int(live.count_nonzero())
        for size, live in zip(here, alive, strict=True)
    )
    layers = [
        LayerSize(target.name, tuple(target.parameter.shape), size, gone, granularity.least)
        for target, size, gone in zip(targets, sizes, pruned, strict=True)
    ]
    rest = [i for i, target in enumerate(targets) if target.name not in own]
    pools: list[Pool] = []
    if rest:
        share = DISTRIBUTIONS[method.distribution]
        for pool in share([layers[i] for i in rest], sparsity / granularity.limit):
            pools.append(Pool(tuple(rest[i] for i in pool.layers), pool.pruned))
    for i, target in enumerate(targets):
        if target.name in own:
            [pool] = uniform([layers[i]], own[target.name] / granularity.limit)
            pools.append(Pool((i,), pool.pruned))
    return pools
