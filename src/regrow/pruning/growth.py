# SPDX-License-Identifier: MIT
"""Growth criteria: which pruned weights return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from regrow.distributed.shard import ShardedCounts
from regrow.distributed.sharded_random import sharded_random
from regrow.masks.lazy_scores import ScoresLike, materialized_scores, random_scores
from regrow.masks.targets import Target
from regrow.masks.topk import global_topk_masks
from regrow.pruning.initializers import BY_ROWS, Initializer, sparse_he
from regrow.utils.errors import (
    ConfigError,
    StateError,
    check_callable,
    check_count,
    check_sparsity,
)
from regrow.utils.names import callable_name
from regrow.utils.random import make_generator

GrowthCriterion = Callable[[Target, Tensor | None, Tensor | None, torch.Generator], Tensor]
"""(target, mean dense gradient, removed values, generator) -> scores; the highest return."""


def random_growth(
    target: Target, momentum: Tensor | None, removed: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Uniform random numbers, as in SET. Source: Mocanu et al. 2018."""
    numbers = sharded_random(torch.rand, target.parameter.shape, target.shard, generator)
    return numbers.to(target.weight.device)


def gradient_growth(
    target: Target, momentum: Tensor | None, removed: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Size of the dense gradient, as in RigL. Source: Evci et al. 2020, eq. 2."""
    if target.grad is None:
        raise StateError(
            f"{target.name} has no gradient to grow by: it may be frozen or unused in the loss, "
            "then exclude it; outside of a fit, call backward() before"
        )
    return target.grad.detach().abs()


def momentum_growth(
    target: Target, momentum: Tensor | None, removed: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Size of the running mean of dense gradients, as in SNFS. Source: Dettmers et al. 2019."""
    if momentum is None:
        raise StateError(
            f"there is no running mean of dense gradients of {target.name}: it may be frozen or "
            "unused in the loss, then exclude it; outside of DynamicSparseTraining, grow by "
            "'gradient'"
        )
    return momentum.detach().abs()


def removed_growth(
    target: Target, momentum: Tensor | None, removed: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Size of the value when the weight was pruned."""
    if removed is None:
        raise StateError(
            f"no removed values of {target.name} were kept: write keep_removed=True, or grow by "
            "'random'"
        )
    return removed.abs()


GROWTHS: Mapping[str, GrowthCriterion] = {
    "random": random_growth,
    "gradient": gradient_growth,
    "momentum": momentum_growth,
    "removed": removed_growth,
}

# `growth_scores` returns signed scores for these, to be ranked by magnitude.
MAGNITUDES = (gradient_growth, momentum_growth, removed_growth)


def get_growth_criterion(by: str | GrowthCriterion) -> GrowthCriterion:
    """Return a growth criterion by name, or a given callable unchanged."""
    return check_callable("by", by, GROWTHS)


def regrow_count(fraction: float | None, count: int | None, pruned: int) -> int:
    """Compute how many of the pruned weights return."""
    if (fraction is None) == (count is None):
        raise ConfigError(
            "regrow needs either a fraction of the pruned weights or a count, one of the two, got "
            f"fraction={fraction}, count={count}: write regrow(0.1)"
        )
    if count is not None:
        return check_count("count", count, least=0)
    if fraction == 1 and not isinstance(fraction, bool):
        return pruned
    return round(check_sparsity("fraction", fraction) * pruned)


def select_regrown(
    growth: GrowthCriterion,
    targets: Sequence[Target],
    kept: Sequence[Tensor | None],
    count: int,
    *,
    momenta: Mapping[str, Tensor],
    removed: Callable[[Target], Tensor | None],
    seed: tuple[int, int],
) -> list[Tensor]:
    """Select the `count` pruned weights that return, as bool masks; of ties the later ones."""
    names, shards = [target.name for target in targets], [target.shard for target in targets]
    pruned = ShardedCounts(shards).sums(
        0 if mask is None else mask.numel() - int(mask.count_nonzero()) for mask in kept
    )
    if count > sum(pruned):
        raise ConfigError(
            f"{count} weights cannot come back, {sum(pruned)} are pruned in {', '.join(names[:3])}"
        )
    # a dense layer needs no gradient and no removed values
    scores: list[ScoresLike] = [
        growth_scores(growth, t, momenta.get(t.name), removed, seed) if some else t.weight
        for t, some in zip(targets, pruned, strict=True)
    ]
    return global_topk_masks(
        scores,
        sum(target.parameter.numel() for target in targets) - count,
        kept,
        among_pruned=True,
        magnitude=growth in MAGNITUDES,
        min_keep=0,
        names=names,
        shards=shards,
    )


def growth_scores(
    growth: GrowthCriterion,
    target: Target,
    momentum: Tensor | None,
    removed: Callable[[Target], Tensor | None],
    seed: tuple[int, int],
) -> ScoresLike:
    """Compute the scores of one target, lazily for built-in criteria; signed for `MAGNITUDES`."""
    name, weight = target.name, target.weight
    if growth is random_growth:
        return random_scores(weight, target.shard, lambda: make_generator(*seed, name))
    if growth is gradient_growth and target.grad is not None:
        return target.grad.detach()
    if growth is momentum_growth and momentum is not None:
        return momentum.detach()
    values = removed(target)
    if growth is removed_growth and values is not None:
        return materialized_scores(weight, lambda: removed(target))
    with torch.no_grad():
        scores = growth(target, momentum, values, make_generator(*seed, name))
    if scores.shape != weight.shape or not scores.is_floating_point():
        raise StateError(
            f"the growth criterion must return floating-point scores of shape "
            f"{tuple(weight.shape)} for {name}, got {scores.dtype} of shape {tuple(scores.shape)}"
        )
    return scores


def check_supports_sharding(
    growth: GrowthCriterion, initializer: Initializer, targets: Iterable[Target]
) -> None:
    """Check that criterion and initializer need only the local rows of sharded parameters."""
    for target in targets:
        if target.shard is None:
            continue
        if growth not in GROWTHS.values():
            raise ConfigError(
                f"{target.name} is sharded among ranks, and {callable_name(growth)} "
                f"would see some of its rows alone: write by='random', one of {', '.join(GROWTHS)}"
            )
        transposed = initializer is sparse_he and target.input_dim == 0
        if initializer not in BY_ROWS or transposed:
            raise ConfigError(
                f"{target.name} is sharded among ranks, and init={callable_name(initializer)!r} "
                "needs all of its rows at once: write init='he', 'zero' or 'removed'"
            )
