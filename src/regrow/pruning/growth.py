# SPDX-License-Identifier: MIT
"""Which pruned weights come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from regrow.distributed.sharded_counts import ShardedCounts
from regrow.distributed.sharded_random import sharded_random
from regrow.masks.lazy_scores import ScoresLike, materialized_scores, random_scores
from regrow.masks.targets import Target
from regrow.masks.topk import global_topk_masks
from regrow.pruning.initializers import BY_ROWS, Initializer, callable_name, sparse_he
from regrow.utils.errors import ConfigError, StateError, check_choice, check_count, check_sparsity
from regrow.utils.random import make_generator

GrowthCriterion = Callable[[Target, Tensor | None, Tensor | None, torch.Generator], Tensor]
"""(target, mean dense gradient, removed values, generator) -> scores, higher = comes back."""


def random_growth(
    target: Target, momentum: Tensor | None, removed: Tensor | None, generator: torch.Generator
) -> Tensor:
    """By lot, as SET does. Source: Mocanu et al. 2018."""
    numbers = sharded_random(torch.rand, target.parameter.shape, target.shard, generator)
    return numbers.to(target.weight.device)


def gradient_growth(
    target: Target, momentum: Tensor | None, removed: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Where the dense gradient is largest, as RigL does. Source: Evci et al. 2020, eq. 2."""
    if target.grad is None:
        raise StateError(
            f"{target.name} has no gradient to grow by: regrow within a fit, or after backward()"
        )
    return target.grad.detach().abs()


def momentum_growth(
    target: Target, momentum: Tensor | None, removed: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Where the running mean of dense gradients is largest, as SNFS does.

    Source: Dettmers and Zettlemoyer 2019.
    """
    if momentum is None:
        raise StateError(
            f"nobody tracked the mean dense gradient of {target.name}: grow by 'momentum' within "
            "DynamicSparseTraining, or by 'gradient'"
        )
    return momentum.detach().abs()


def removed_growth(
    target: Target, momentum: Tensor | None, removed: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Those first that were largest when they were pruned."""
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


MAGNITUDES = (
    gradient_growth,
    momentum_growth,
    removed_growth,
)  # what `ranked` gives may be negative


def get_growth_criterion(by: str | GrowthCriterion) -> GrowthCriterion:
    """A growth rule from its name, or the callable itself.

    Example:
        >>> get_growth_criterion("gradient") is gradient_growth
        True
    """
    if isinstance(by, str):
        return GROWTHS[check_choice("by", by, GROWTHS)]
    if not callable(by):
        raise ConfigError(f"by must be a name or a callable, got {by!r}")
    return by


def regrow_count(fraction: float | None, count: int | None, pruned: int) -> int:
    """How many of the pruned weights come back.

    Raises:
        ConfigError: If not exactly one of fraction and count is given, or it is out of range.

    Example:
        >>> regrow_count(0.1, None, 90)
        9
    """
    if (fraction is None) == (count is None):
        raise ConfigError(
            f"regrow takes a fraction of what is pruned or a count, one of the two, got "
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
    counts: int | Sequence[int],
    *,
    momenta: Mapping[str, Tensor],
    removed: Callable[[Target], Tensor | None],
    seed: tuple[int, int],
) -> list[Tensor]:
    """Select the pruned weights that return.

    Args:
        growth: Scores pruned weights; the highest return.
        targets: The parameters to choose among.
        kept: Their masks (non-zero = kept); None where nothing is pruned.
        counts: How many return, over all targets together or for each.
        momenta: Running means of dense gradients by name, for growth by momentum.
        removed: Returns removed values in the weight's shape, where they were stored.
        seed: (seed, event), for random draws.

    Returns:
        Bool masks, True = returns; of equal scores the later position returns.

    Raises:
        ConfigError: If fewer weights are pruned than asked for.
        StateError: If the rule lacks what it needs, or its scores do not fit, naming the layer.
    """
    names, shards = [target.name for target in targets], [target.shard for target in targets]
    everywhere = ShardedCounts(shards)
    free = everywhere.sums(
        0 if mask is None else mask.numel() - int(mask.count_nonzero()) for mask in kept
    )
    # a dense layer needs no gradient and nothing removed
    scores: list[ScoresLike] = [
        growth_scores(growth, t, momenta.get(t.name), removed, seed) if pruned else t.weight
        for t, pruned in zip(targets, free, strict=True)
    ]

    def highest(part: slice, count: int) -> list[Tensor]:
        total, pruned = sum(t.parameter.numel() for t in targets[part]), sum(free[part])
        if not 0 <= count <= pruned:
            raise ConfigError(
                f"{count} weights cannot come back, {pruned} are pruned in "
                f"{', '.join(names[part][:3])}"
            )
        return global_topk_masks(
            scores[part],
            total - count,
            kept[part],
            among_pruned=True,
            magnitude=growth in MAGNITUDES,
            min_keep=0,
            names=names[part],
            shards=shards[part],
        )

    if isinstance(counts, int):
        return highest(slice(None), counts)
    return [highest(slice(i, i + 1), count)[0] for i, count in enumerate(counts)]


def growth_scores(
    growth: GrowthCriterion,
    target: Target,
    momentum: Tensor | None,
    removed: Callable[[Target], Tensor | None],
    seed: tuple[int, int],
) -> ScoresLike:
    """What ranks the places of one target, by magnitude for rules in `MAGNITUDES`.

    Args and Raises: as `select_regrown`; nothing is held for built-in rules.
    """
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
    return _scores(growth, target, momentum, values, make_generator(*seed, name))


def _scores(
    growth: GrowthCriterion,
    target: Target,
    momentum: Tensor | None,
    removed: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    with torch.no_grad():
        scores = growth(target, momentum, removed, generator)
    if scores.shape != target.weight.shape or not scores.is_floating_point():
        raise StateError(
            f"the rule that regrows {target.name} must give floating-point scores of shape "
            f"{tuple(target.weight.shape)}, got {scores.dtype} of shape {tuple(scores.shape)}"
        )
    return scores


def check_supports_sharding(
    growth: GrowthCriterion, initializer: Initializer, targets: Iterable[Target]
) -> None:
    """Check that criterion and initializer need only the local rows of sharded parameters.

    Raises:
        ConfigError: Naming the parameter and what to write.
    """
    for target in targets:
        if target.shard is None:
            continue
        if growth not in GROWTHS.values():
            raise ConfigError(
                f"{target.name} is sharded among ranks, and {callable_name(growth)} "
                f"would see some of its rows alone: write by='random', one of {', '.join(GROWTHS)}"
            )
        turned = initializer is sparse_he and target.input_dim == 0
        if initializer not in BY_ROWS or turned:
            raise ConfigError(
                f"{target.name} is sharded among ranks, and init={callable_name(initializer)!r} "
                "needs all of its rows at once: write init='he', 'zero' or 'removed'"
            )
