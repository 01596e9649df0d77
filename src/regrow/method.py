# SPDX-License-Identifier: MIT
"""The method: how weights are ranked and grouped, and the masks that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regrow.computed import Scores, computed
from regrow.criteria import (
    Criterion,
    Movement,
    TrackingCriterion,
    magnitude,
    make_criterion,
    score,
    scores_of,
)
from regrow.distributions import DISTRIBUTIONS, Layer, Pool, lamp_scores, uniform
from regrow.errors import ConfigError, StateError, check_choice, check_patterns, check_sparsity
from regrow.granularity import Granularity, Weight, make_granularity
from regrow.grouping import mask_of, units_of
from regrow.selection import keep_highest
from regrow.sharding import Everywhere
from regrow.targets import Target


class Method(NamedTuple):
    """How weights are ranked and grouped: what every pruner is configured with.

    Attributes:
        criterion: A name ("magnitude", "random", "gradient", "taylor", "snip", "movement"), a
            callable `(weight, grad) -> scores`, or a tracking criterion.
        distribution: "global", "uniform", "erk" or "lamp".
        granularity: "weight", "2:4" (any "n:m") or "block:4x4".
        layers: Own final sparsity for some layers, `{pattern: sparsity}`.
        include: Patterns of what is pruned; None: Conv, ConvTranspose and Linear weights.
        exclude: Patterns of what is not.
        seed: For criteria that draw random numbers.
    """

    criterion: str | Criterion | TrackingCriterion = "magnitude"
    distribution: str = "global"
    granularity: str = "weight"
    layers: Mapping[str, float] | None = None
    include: Iterable[str] | None = None
    exclude: Iterable[str] | None = None
    seed: int = 0

    def checked(self) -> Method:
        """The same, with every word and number checked, before any model is at hand.

        Raises:
            ConfigError: What was given, what is allowed, what to write.
        """
        check_choice("distribution", self.distribution, DISTRIBUTIONS)
        make_granularity(self.granularity)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed must be a whole number, got {self.seed!r}")
        if self.layers is not None and not isinstance(self.layers, Mapping):
            raise ConfigError(
                f"layers must map patterns to sparsities, {{'fc': 0.5}}, got {self.layers!r}"
            )
        criterion = make_criterion(self.criterion)
        if self.distribution == "lamp" and isinstance(criterion, Movement):
            raise ConfigError(
                "LAMP compares squared scores, and those of movement are negative where weights "
                "shrink: write distribution='global', 'uniform' or 'erk'"
            )
        own = {
            pattern: self.check_target(sparsity, f"the sparsity of layers {pattern!r}")
            for pattern, sparsity in (self.layers or {}).items()
        }
        return self._replace(
            criterion=criterion,
            layers=own,
            include=check_patterns("include", self.include),
            exclude=check_patterns("exclude", self.exclude),
        )

    def words(self) -> dict[str, Any]:
        """What must not change between a checkpoint and its resume, as builtin values."""
        criterion = self.criterion
        name = criterion if isinstance(criterion, str) else None
        name = name or getattr(criterion, "__name__", type(criterion).__name__)
        return {
            "criterion": name,
            "distribution": self.distribution,
            "granularity": self.granularity,
            "layers": dict(self.layers or {}),
            "seed": self.seed,
        }

    def refuse_other(self, words: Mapping[str, Any]) -> None:
        """Refuses to go on from a checkpoint that was pruned in another way.

        Raises:
            StateError: Naming what it was and what it is now.
        """
        now = self.words()
        changed = [f"{k}={was!r}, now {now[k]!r}" for k, was in words.items() if was != now[k]]
        if changed:
            raise StateError(
                f"the checkpoint was pruned with {'; '.join(changed)}: restore that, or load the "
                "weights and start a fit"
            )

    def check_target(self, sparsity: object, what: str = "sparsity") -> float:
        """Returns a final sparsity that the granularity can reach.

        Raises:
            ConfigError: If it is no number in [0, 1), or n:m and neither 0 nor (m - n) / m.
        """
        value = check_sparsity(what, sparsity)
        limit = make_granularity(self.granularity).limit
        if limit == 1 or value == 0:
            return value
        if abs(value - limit) > 1e-3:
            raise ConfigError(
                f"granularity {self.granularity!r} has sparsity {limit:.4g} and no other, got "
                f"{what}={sparsity}: write {limit:.4g}"
            )
        return limit


@torch.no_grad()
def choose_masks(
    method: Method,
    targets: Sequence[Target],
    kept: Sequence[Tensor | None],
    sparsity: float,
    own: Mapping[str, float],
    event: int,
) -> list[Tensor]:
    """Weights -> scores -> units -> masks.

    Args:
        method: A checked method.
        targets: What is pruned.
        kept: Present working masks (non-zero = kept), None where nothing is pruned.
        sparsity: For all targets without one of their own.
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
        found = keep_highest(
            [units[i] for i in pool.layers],
            pool.pruned,
            [alive[i] for i in pool.layers],
            magnitude=by_magnitude,
            least=granularity.least,
            names=[targets[i].name for i in pool.layers],
            shards=[shards[i] for i in pool.layers],
        )
        masks |= zip(pool.layers, found, strict=True)
    del units  # the masks need their room
    if not whole:
        for i, mask in masks.items():
            before, present = alive[i], kept[i]
            unchanged = mask if before is None else mask | ~before
            masks[i] = mask_of(granularity, unchanged, scores[i], dims[i])
            if present is not None:
                masks[i] &= present != 0
    return [masks[i] for i in range(len(targets))]


def _scores(method: Method, target: Target, by_magnitude: bool, event: int) -> Scores:
    """What ranks the weights of one target."""
    if by_magnitude:
        return target.weight
    criterion = make_criterion(method.criterion)
    take = score if method.distribution == "lamp" else scores_of  # LAMP sorts whole layers
    weight, grad = target.parameter.detach(), target.parameter.grad
    return take(criterion, target.name, weight, grad, (method.seed, event))


def _pools(
    method: Method,
    granularity: Granularity,
    targets: Sequence[Target],
    units: Sequence[Scores],
    alive: Sequence[Tensor | None],
    sparsity: float,
    own: Mapping[str, float],
) -> list[Pool]:
    """Who is ranked with whom; a sparsity of weights becomes one of units."""
    everywhere = Everywhere([target.shard for target in targets])
    here = [computed(unit).like.numel() for unit in units]
    sizes = everywhere.sums(here)
    pruned = everywhere.sums(
        0 if live is None else size - int(live.count_nonzero())
        for size, live in zip(here, alive, strict=True)
    )
    layers = [
        Layer(target.name, tuple(target.parameter.shape), size, gone, granularity.least)
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
