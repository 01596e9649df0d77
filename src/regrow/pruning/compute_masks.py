# SPDX-License-Identifier: MIT
"""Compute masks: scores -> units -> masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regrow.criteria.base import compute_scores, get_criterion, lazy_criterion_scores
from regrow.criteria.elementwise import magnitude
from regrow.distributed.shard import ShardedCounts
from regrow.masks.distributions import DISTRIBUTIONS, LayerSize, Pool, lamp_scores, uniform
from regrow.masks.granularity import (
    Granularity,
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
    units = _Units(make_granularity(config.granularity), targets)
    ranks_weights = threshold is None and isinstance(units.granularity, Weight)
    # the weights themselves are ranked by magnitude, which saves a copy of all of them
    by_magnitude = config.criterion is magnitude and ranks_weights and config.distribution != "lamp"
    of_weights = [_scores(config, target, by_magnitude, event) for target in targets]
    scores, alive, firsts = units.scores(of_weights), units.alive(kept), units.firsts
    if config.distribution == "lamp":
        computed = [score for score in scores if isinstance(score, Tensor)]  # all, see `_scores`
        triples = zip(computed, alive, firsts, strict=True)
        scores = [lamp_scores(score, live, target.name) for score, live, target in triples]
    layers = _layer_sizes(config, units, scores, alive, own)
    if threshold is None:
        pools = _pools(config, layers, sparsity, own, units.granularity.limit)
    else:
        pools = _pools_below(threshold, firsts, layers, scores, alive)
    masks: dict[int, Tensor] = {}
    for pool in pools:
        chosen = global_topk_masks(
            [scores[i] for i in pool.layers],
            pool.pruned,
            [alive[i] for i in pool.layers],
            magnitude=by_magnitude,
            min_keep=[layers[i].least for i in pool.layers],
            names=[firsts[i].name for i in pool.layers],
            shards=[firsts[i].shard for i in pool.layers],
        )
        masks |= zip(pool.layers, chosen, strict=True)
    del scores  # frees memory for the masks
    return units.weight_masks([masks[i] for i in range(len(firsts))], alive, of_weights, kept)


def mask_complete_units(
    granularity: Granularity, targets: Sequence[Target], kept: Sequence[Tensor]
) -> list[Tensor]:
    """Return masks that prune, of what bool masks prune, the complete units."""
    units = _Units(granularity, targets)
    complete = [unit for unit in units.alive(kept) if unit is not None]  # all of them
    scores = [elementwise_scores(magnitude, target.weight) for target in targets]
    return units.weight_masks(complete, [None] * len(complete), scores, [None] * len(targets))


class _Units:
    """The units of some targets, by group: of each one alone, or heads of a whole module."""

    def __init__(self, granularity: Granularity, targets: Sequence[Target]) -> None:
        self.granularity, self.targets = granularity, targets
        self.groups = [[i] for i in range(len(targets))]
        if isinstance(granularity, Head):
            self.groups = granularity.groups(targets)
        self.firsts = [targets[group[0]] for group in self.groups]

    def scores(self, scores: Sequence[ScoresLike]) -> list[ScoresLike]:
        """Turn the scores of weights into those of units."""
        rule, targets = self.granularity, self.targets
        if isinstance(rule, Weight):
            return list(scores)
        if not isinstance(rule, Head):
            pairs = zip(scores, targets, strict=True)
            return [units_of(rule, score, target.input_dim) for score, target in pairs]
        return [
            torch.stack([head_part(targets[i]).sums(whole_scores(scores[i])) for i in group]).sum(0)
            for group in self.groups
        ]

    def alive(self, kept: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return which units are not pruned; None: all."""
        rule = self.granularity
        if isinstance(rule, Weight):
            return list(kept)
        found: list[Tensor | None] = []
        for group, first in zip(self.groups, self.firsts, strict=True):
            masks = [mask for i in group if (mask := kept[i]) is not None]
            if len(masks) < len(group):
                found.append(None)
            elif isinstance(rule, Head):
                pairs = zip(group, masks, strict=True)
                parts = [head_part(self.targets[i]).kept(mask) for i, mask in pairs]
                found.append(torch.stack(parts).any(0))
            else:
                found.append(rule.kept_units(masks[0] != 0, first.input_dim))
        return found

    def weight_masks(
        self,
        masks: Sequence[Tensor],
        alive: Sequence[Tensor | None],
        scores: Sequence[ScoresLike],
        kept: Sequence[Tensor | None],
    ) -> list[Tensor]:
        """Turn masks of units into masks of the weights of all targets."""
        rule = self.granularity
        if isinstance(rule, Weight):
            return list(masks)
        result: dict[int, Tensor] = {}
        for group, mask, live in zip(self.groups, masks, alive, strict=True):
            units = mask if live is None else mask | ~live
            for i in group:
                now, target = kept[i], self.targets[i]
                if isinstance(rule, Head):
                    whole = head_part(target).mask(units, target.weight)
                else:
                    whole = mask_from_units(rule, units, scores[i], target.input_dim)
                result[i] = whole if now is None else whole.logical_and_(now != 0)
        return [result[i] for i in range(len(result))]


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
    units: _Units,
    scores: Sequence[ScoresLike],
    alive: Sequence[Tensor | None],
    own: Mapping[str, float],
) -> list[LayerSize]:
    """Count the units of each layer: all, pruned ones, and how many must stay."""
    rule, totals = units.granularity, ShardedCounts([target.shard for target in units.firsts])
    here = [as_lazy(score).like.numel() for score in scores]
    sizes = totals.sums(here)
    pruned = totals.sums(
        0 if live is None else size - int(live.count_nonzero())
        for size, live in zip(here, alive, strict=True)
    )
    # of the units of n:m groups, which keep n weights, fewer need to stay
    share = 1 - (1 - config.min_density) / rule.limit
    return [
        LayerSize(
            target.name,
            tuple(target.parameter.shape),
            size,
            n_pruned,
            max(rule.least, 0 if target.name in own else math.ceil(share * size - 1e-6)),
        )
        for target, size, n_pruned in zip(units.firsts, sizes, pruned, strict=True)
    ]


def _pools(
    config: PruningConfig,
    layers: Sequence[LayerSize],
    sparsity: float,
    own: Mapping[str, float],
    limit: float,
) -> list[Pool]:
    """Distribute a sparsity over layers, in units; those with a separate one get their own."""
    rest = [i for i, layer in enumerate(layers) if layer.name not in own]
    pools: list[Pool] = []
    if rest:
        for pool in DISTRIBUTIONS[config.distribution]([layers[i] for i in rest], sparsity / limit):
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
