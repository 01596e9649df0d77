# SPDX-License-Identifier: MIT
"""PruningConfig: the settings of a Pruner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from regrow.criteria.base import Criterion, TrackingCriterion, get_criterion
from regrow.criteria.movement import Movement
from regrow.masks.distributions import DISTRIBUTIONS
from regrow.masks.granularity import make_granularity
from regrow.utils.errors import (
    ConfigError,
    StateError,
    check_choice,
    check_layer_sparsities,
    check_not_text,
    check_patterns,
    check_positive,
    check_sparsity,
)
from regrow.utils.names import callable_name


def check_same_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `StateError` if a checkpoint has other settings, naming those that differ."""
    pairs = {key: (saved.get(key, 0), now.get(key, 0)) for key in {**now, **saved}}
    changed = [f"{k}={was!r}, now {new!r}" for k, (was, new) in pairs.items() if was != new]
    if changed:
        raise StateError(
            f"the checkpoint was pruned with {'; '.join(changed)}: restore that, or load the "
            "weights and start a fit"
        )


class PruningConfig(NamedTuple):
    """How a `Pruner` ranks and groups weights: the settings of `regrow.prune`, as they are there.

    A `threshold` is the final one, if weights with lower scores are pruned instead of a fraction.

    Example:
        >>> PruningConfig(distribution="erk", exclude=["head.*"]).granularity
        'weight'
    """

    criterion: str | Criterion | TrackingCriterion = "magnitude"
    distribution: str = "global"
    granularity: str = "weight"
    layers: Mapping[str, float] | None = None
    include: Iterable[str] | None = None
    exclude: Iterable[str] | None = None
    seed: int = 0
    on_misfit: str = "raise"
    min_density: float = 0.0
    threshold: float | None = None

    def validated(self) -> PruningConfig:
        """Check all settings that can be checked without a model, and return them normalised."""
        check_choice("distribution", self.distribution, DISTRIBUTIONS)
        check_choice("on_misfit", self.on_misfit, ("raise", "skip"))
        make_granularity(self.granularity)
        if self.threshold is not None:
            self.check_threshold(self.threshold)
        check_not_text("seed", self.seed)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed must be a whole number, got {self.seed!r}")
        criterion = get_criterion(self.criterion)
        if self.distribution == "lamp" and isinstance(criterion, Movement):
            raise ConfigError(
                "LAMP compares squared scores, and those of movement are negative where weights "
                "shrink: write distribution='global', 'uniform' or 'erk'"
            )
        if self.granularity == "head" and self.layers:
            raise ConfigError(
                "layers= has sparsities of single weights, and a head is pruned in several: write "
                "a second callback with include= in place of layers="
            )
        layers = {
            pattern: self.check_target(sparsity, f"the sparsity of layers {pattern!r}")
            for pattern, sparsity in check_layer_sparsities(self.layers).items()
        }
        return self._replace(
            criterion=criterion,
            layers=layers,
            min_density=check_sparsity("min_density", self.min_density),
            include=check_patterns("include", self.include),
            exclude=check_patterns("exclude", self.exclude),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that a resume must not change, as builtin values."""
        optional = {"min_density": self.min_density, "threshold": self.threshold}
        return {
            **{key: value for key, value in optional.items() if value},
            "criterion": callable_name(self.criterion),
            "distribution": self.distribution,
            "granularity": self.granularity,
            "layers": dict(self.layers or {}),
            "seed": self.seed,
        }

    def check_threshold(self, threshold: object) -> float:
        """Return a threshold above 0, unless other settings have no meaning beside it."""
        value = check_positive("threshold", threshold, "0.01 to prune every |w| < 0.01")
        needed = {"distribution": "global", "granularity": "weight", "layers": {}}
        given = {key: getattr(self, key) or {} for key in needed}
        if other := [key for key, only in needed.items() if given[key] != only]:
            raise ConfigError(
                f"threshold={threshold} is compared with each single weight of every layer, so "
                f"{' and '.join(f'{key}={given[key]!r}' for key in other)} beside it has no "
                "meaning: write granularity='weight', and leave out distribution and layers (for "
                "other layers, add a second MagnitudePruning with include=)"
            )
        return value

    def check_target(self, sparsity: object, what: str = "sparsity") -> float:
        """Return a final sparsity if the granularity can reach it."""
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
