# SPDX-License-Identifier: MIT
"""Dynamic sparse training: drop_and_grow, gradient momentum, explored positions.

An update drops the lowest of the kept weights and grows as many among all weights that are then
pruned. A weight that is dropped and grown at once keeps value and moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from regrow.criteria.base import Criterion, TrackingCriterion, get_criterion, lazy_criterion_scores
from regrow.criteria.elementwise import magnitude, random
from regrow.distributed.parameters import Shards
from regrow.distributed.shard import is_dtensor, local_tensor, to_dtensor_like
from regrow.masks.lazy_scores import ScoresLike
from regrow.masks.masks import Masks, PackedMasks
from regrow.masks.targets import Target
from regrow.masks.topk_single import topk_mask
from regrow.pruning.compute_masks import choose_masks
from regrow.pruning.growth import (
    MAGNITUDES,
    GrowthCriterion,
    check_supports_sharding,
    get_growth_criterion,
    growth_scores,
)
from regrow.pruning.initializers import (
    BY_ROWS,
    Initializer,
    RegrownWeights,
    initial_values,
    make_initializer,
    zero,
)
from regrow.pruning.pruner import Pruner
from regrow.pruning.restore import make_regrown
from regrow.pruning.state import HistoryEntry
from regrow.pruning.transaction import atomic
from regrow.utils.errors import check_choice
from regrow.utils.optimizers import trained_parameters

GROW = ("gradient", "momentum", "random")


BETA = 0.9


@atomic
@torch.no_grad()
def draw_masks(
    pruner: Pruner, sparsity: float, optimizers: Iterable[Optimizer] = ()
) -> HistoryEntry:
    """Prune at random to the layer densities of the distribution, to start sparse training."""
    before, config = pruner.sparsity, pruner.config._replace(criterion=random)
    kept = [pruner.enforcer.kept(target.name) for target in pruner.targets]
    event = len(pruner.history)
    masks = choose_masks(config, pruner.targets, kept, sparsity, pruner.layer_targets, event)
    pruner.state.set_all(masks, optimizers)
    pruner.state.target = sparsity
    return pruner.record_event("prune", before)


@atomic
@torch.no_grad()
def drop_and_grow(
    pruner: Pruner,
    share: float,
    *,
    drop: str | Criterion | TrackingCriterion = "magnitude",
    grow: str | GrowthCriterion = "gradient",
    init: str | Initializer = "zero",
    optimizers: Iterable[Optimizer] = (),
) -> HistoryEntry:
    """Update the masks once; each layer keeps as many weights as before.

    Of k kept weights of a layer, round(share k) are dropped, lowest scores by `drop` first; as many
    grow among all others, those just dropped included. Optimizer state of both becomes zero.

    Source: Evci et al. 2020 (RigL), Mocanu et al. 2018 (SET), Dettmers et al. 2019 (SNFS).
    """
    criterion, initializer = get_criterion(drop), make_initializer(init)
    named = check_choice("grow", grow, GROW) if isinstance(grow, str) else grow
    growth, before, optimizers = get_growth_criterion(named), pruner.sparsity, list(optimizers)
    seed = (pruner.state.seed, len(pruner.history))
    pruner.enforcer.state(optimizers)  # weights that return have moments of zero
    sparse = [t for t in pruner.targets if pruner.state.pruned_count(t.name)]
    check_supports_sharding(growth, initializer, sparse)
    moves = [_select_move(pruner, target, share, criterion, growth, seed) for target in sparse]
    makes = [partial(_make_grown, pruner, *move, initializer, seed) for move in moves]
    values = [] if initializer is zero else initial_values(initializer, makes)
    new = {}
    for number, move in enumerate(moves):
        value = values[number](makes[number]()) if values else None  # before the layer changes
        weight, grown = move.target.weight, _new_positions(pruner, *move)
        pruner.state.set(move.target.name, move.after, optimizers)
        if value is not None:
            torch.where(grown, value.to(weight), weight, out=weight)
        new[move.target.name] = int(grown.count_nonzero())
    pruner.enforce(optimizers)
    moved = sum(pruner.state.shards.sums(new).values())
    kept = pruner.total - pruner.pruned
    overlap = (kept - moved) / (kept + moved) if kept else 1.0
    return pruner.record_event("drop_and_grow", before, share=share, moved=moved, overlap=overlap)


@torch.no_grad()
def update_gradient_momentum(pruner: Pruner, optimizer: Optimizer | None = None) -> None:
    """Update `pruner.state.momenta`, the means of dense gradients: m = 0.9 m + 0.1 g, from m = 0.

    Source: Dettmers and Zettlemoyer 2019, section 3.1.
    """
    trained = set() if optimizer is None else trained_parameters(optimizer)
    momenta = pruner.state.momenta
    for target in pruner.targets:
        grad = target.grad
        if grad is None or (optimizer is not None and id(target.parameter) not in trained):
            continue
        mean = momenta.get(target.name)
        mean = torch.zeros_like(grad, dtype=torch.float32) if mean is None else mean
        momenta[target.name] = mean.to(grad.device).lerp_(grad.to(mean.dtype), 1 - BETA)


class _Move(NamedTuple):
    target: Target
    after: Tensor  # the new mask


def _select_move(
    pruner: Pruner,
    target: Target,
    share: float,
    criterion: Criterion | TrackingCriterion,
    growth: GrowthCriterion,
    seed: tuple[int, int],
) -> _Move:
    """Select the weights that one layer drops and grows."""
    name, parameter, shard = target.name, target.parameter, target.shard
    by_size = criterion is magnitude
    # another event number, because random drop and random growth both draw
    drop_seed = (seed[0], ~seed[1])
    scores: ScoresLike = target.weight
    if not by_size:
        weight, grad = parameter.detach(), parameter.grad
        scores = lazy_criterion_scores(criterion, name, weight, grad, drop_seed)
    live = parameter.numel() - pruner.state.pruned_count(name)
    count = round(share * live)
    kept = pruner.enforcer.mask(name)
    after = topk_mask(scores, live - count, kept, magnitude=by_size, name=name, shard=shard)
    del scores, kept
    growing = growth_scores(growth, target, pruner.state.momenta.get(name), lambda _: None, seed)
    by_size = growth in MAGNITUDES
    grown = topk_mask(growing, count, ~after, magnitude=by_size, name=name, shard=shard)
    return _Move(target, after.logical_or_(grown))


def _new_positions(pruner: Pruner, target: Target, after: Tensor) -> Tensor:
    return after & ~pruner.enforcer.mask(target.name)


def _make_grown(
    pruner: Pruner, target: Target, after: Tensor, initializer: Initializer, seed: tuple[int, int]
) -> RegrownWeights:
    """Make the initializer's argument for one layer, in which dropped weights are 0."""
    new = _new_positions(pruner, target, after)
    back, stay = make_regrown(pruner.state, target, new, seed, initializer), after & ~new
    if initializer in BY_ROWS:  # they read no weight
        return replace(back, kept=stay)
    return replace(back, weight=target.weight.where(stay, 0.0), kept=stay)


class ExploredMask:
    """Records which weights were kept at some time of sparse training: `seen`, one bool per weight.

    In host memory; those of sharded parameters are DTensors, sharded alike.

    Source: Liu et al. 2021 (in-time over-parameterisation), section 3.1.
    """

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def add(self, masks: Mapping[str, Tensor]) -> float:
        """Add the present masks; return the fraction of weights that were kept at some time."""
        for name, mask in masks.items():
            mask = mask if is_dtensor(mask) else mask.cpu()
            seen = local_tensor(mask)
            if name in self.seen:
                seen = seen | local_tensor(self.seen[name])
            self.seen[name] = to_dtensor_like(mask, seen)
        union = Masks(self.seen)
        return (union.total - union.pruned) / max(1, union.total)

    def state_dict(self) -> PackedMasks:
        return Masks(self.seen).pack()

    def load_state_dict(
        self, state: PackedMasks, parameters: Mapping[str, Tensor] | None = None
    ) -> None:
        """Restore the result of `state_dict`; of sharded `parameters`, this rank's rows."""
        known = parameters or {}
        parts = Masks.unpack(state, Shards(known))
        self.seen = {
            name: to_dtensor_like(known[name], part) if name in known else part
            for name, part in parts.items()
        }
