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
    Grouped,
    Head,
    Weight,
    head_part,
    make_granularity,
    mask_from_units,
    units_of,
)
from regrow.masks.lazy_scores import ScoresLike, as_lazy, elementwise_scores, whole_scores
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
    threshold: float | None = None,
) -> list[Tensor]:
    """Compute the next bool masks of some parameters; pruned weights stay pruned.

    `kept` has the present working masks (non-zero = kept), `own` the sparsity of targets with a
    separate one. With a `threshold` the scores below it are pruned, as far as `min_density` allows,
    instead of a fraction.
    """
    granularity = make_granularity(config.granularity)
    ranks_weights = threshold is None and isinstance(granularity, Weight)
    # the weights themselves are ranked by magnitude, which saves a copy of all of them
    by_magnitude = config.criterion is magnitude and ranks_weights and config.distribution != "lamp"
    scores = [_scores(config, target, by_magnitude, event) for target in targets]
    groups = _groups(granularity, targets)
    units = [_units(granularity, group, targets, scores) for group in groups]
    alive = [_alive(granularity, group, targets, kept) for group in groups]
    firsts = [targets[group[0]] for group in groups]
    if config.distribution == "lamp":
        computed = [unit for unit in units if isinstance(unit, Tensor)]  # all, see `_scores`
        triples = zip(computed, alive, firsts, strict=True)
        units = [lamp_scores(unit, live, target.name) for unit, live, target in triples]
    layers = _layer_sizes(config, granularity, firsts, units, alive, own)
    if threshold is None:
        pools = _pools(config, layers, sparsity / granularity.limit, own, granularity.limit)
    else:
        pools = _pools_below(threshold, firsts, layers, units, alive)
    masks: dict[int, Tensor] = {}
    for pool in pools:
        chosen = global_topk_masks(
            [units[i] for i in pool.layers],
            pool.pruned,
            [alive[i] for i in pool.layers],
            magnitude=by_magnitude,
            min_keep=[layers[i].least for i in pool.layers],
            names=[firsts[i].name for i in pool.layers],
            shards=[firsts[i].shard for i in pool.layers],
        )
        masks |= zip(pool.layers, chosen, strict=True)
    del units  # frees memory for the masks
    if isinstance(granularity, Weight):
        return [masks[i] for i in range(len(targets))]
    return _weight_masks(granularity, groups, targets, masks, alive, scores, kept)


def mask_complete_units(
    granularity: Granularity, targets: Sequence[Target], kept: Sequence[Tensor]
) -> list[Tensor]:
    """Return masks that prune, of what bool masks prune, the complete units."""
    if isinstance(granularity, Weight):
        return list(kept)
    groups = _groups(granularity, targets)
    units = {i: _alive(granularity, group, targets, kept) for i, group in enumerate(groups)}
    scores = [elementwise_scores(magnitude, target.weight) for target in targets]
    nothing = [None] * len(targets)
    found = {i: unit for i, unit in units.items() if unit is not None}
    return _weight_masks(granularity, groups, targets, found, nothing, scores, nothing)


def _groups(granularity: Granularity, targets: Sequence[Target]) -> list[list[int]]:
    """Return which targets have their units together: single ones, or those of a module's heads."""
    if isinstance(granularity, Head):
        return granularity.groups(targets)
    return [[i] for i in range(len(targets))]


def _units(
    granularity: Granularity,
    group: Sequence[int],
    targets: Sequence[Target],
    scores: Sequence[ScoresLike],
) -> ScoresLike:
    """Turn the scores of weights into those of the units of a group of targets."""
    first = scores[group[0]]
    if isinstance(granularity, Weight):
        return first
    if not isinstance(granularity, Head):
        return units_of(granularity, first, targets[group[0]].input_dim)
    return torch.stack([head_part(targets[i]).sums(whole_scores(scores[i])) for i in group]).sum(0)


def _alive(
    granularity: Granularity,
    group: Sequence[int],
    targets: Sequence[Target],
    kept: Sequence[Tensor | None],
) -> Tensor | None:
    """Return which units of a group of targets are not pruned; None: all."""
    masks = {i: mask for i in group if (mask := kept[i]) is not None}
    if isinstance(granularity, Head):
        if len(masks) < len(group):
            return None
        return torch.stack([head_part(targets[i]).kept(masks[i]) for i in group]).any(0)
    if not masks or isinstance(granularity, Weight):
        return kept[group[0]]
    return granularity.kept_units(masks[group[0]] != 0, targets[group[0]].input_dim)


def _weight_masks(
    granularity: Grouped | Head,
    groups: Sequence[Sequence[int]],
    targets: Sequence[Target],
    masks: Mapping[int, Tensor],
    alive: Sequence[Tensor | None],
    scores: Sequence[ScoresLike],
    kept: Sequence[Tensor | None],
) -> list[Tensor]:
    """Turn masks of the units of groups into masks of the weights of all targets."""
    result: dict[int, Tensor] = {}
    for number, group in enumerate(groups):
        before = alive[number]
        units = masks[number] if before is None else masks[number] | ~before
        for i in group:
            now, target = kept[i], targets[i]
            if isinstance(granularity, Head):
                mask = head_part(target).mask(units, target.weight)
            else:
                mask = mask_from_units(granularity, units, scores[i], target.input_dim)
            result[i] = mask if now is None else mask.logical_and_(now != 0)
    return [result[i] for i in range(len(targets))]


def _scores(config: PruningConfig, target: Target, by_magnitude: bool, event: int) -> ScoresLike:
    """Compute the scores of one target, lazily where possible."""
    if by_magnitude:
        return target.weight
    criterion = get_criterion(config.criterion)
    # LAMP sorts whole layers
    compute = compute_scores if config.distribution == "lamp" else lazy_criterion_scores
    weight, grad = target.parameter.detach(), target.parameter.grad
    return compute(criterion, target.name, weight, grad, (config.seed, event))


def _layer_sizes(
    config: PruningConfig,
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
    share = 1 - (1 - config.min_density) / granularity.limit
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
    config: PruningConfig,
    layers: Sequence[LayerSize],
    share: float,
    own: Mapping[str, float],
    limit: float,
) -> list[Pool]:
    """Distribute a share of the units over layers; those with a separate sparsity get their own."""
    rest = [i for i, layer in enumerate(layers) if layer.name not in own]
    pools: list[Pool] = []
    if rest:
        for pool in DISTRIBUTIONS[config.distribution]([layers[i] for i in rest], share):
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
        scores = whole_scores(unit)
        below = scores.to(torch.promote_types(scores.dtype, torch.float32)) < threshold
        counts.append(int((below if live is None else below & (live != 0)).count_nonzero()))
    sums = ShardedCounts([target.shard for target in targets]).sums(counts)
    return [
        Pool((i,), max(layer.pruned, min(layer.pruned + count, layer.units - layer.least)))
        for i, (layer, count) in enumerate(zip(layers, sums, strict=True))
    ]
