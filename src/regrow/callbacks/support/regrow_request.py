# SPDX-License-Identifier: MIT
"""The settings of a regrowth, resolved and checked against the pruning callbacks of a fit."""

from __future__ import annotations

from dataclasses import dataclass

from regrow.callbacks.core.compatibility import FREEZING, check_combination
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.queries import pruners
from regrow.channels.pruner import ChannelPruner, check_regrowth
from regrow.pruning.freezing import TrainSpec
from regrow.pruning.growth import (
    GrowthCriterion,
    check_supports_sharding,
    get_growth_criterion,
    momentum_growth,
    regrow_count,
    removed_growth,
)
from regrow.pruning.initializers import (
    Initializer,
    check_makes_single_weights,
    make_initializer,
    removed_values,
)
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import ConfigError, check_patterns
from regrow.utils.lightning_classes import pl
from regrow.utils.optimizers import trained_parameters


@dataclass(frozen=True)
class RegrowRequest:
    """The arguments of `Pruner.regrow`, checked at construction."""

    fraction: float | None
    count: int | None
    by: str | GrowthCriterion
    init: str | Initializer
    names: str | list[str] | None
    train: TrainSpec

    def __post_init__(self) -> None:
        regrow_count(self.fraction, self.count, 0)
        get_growth_criterion(self.by)
        make_initializer(self.init)
        check_patterns("names", self.names)
        check_patterns("train", self.train)

    @property
    def dense(self) -> bool:
        """Whether it needs dense gradients: a user's criterion may read them too."""
        return self.by == "gradient" or callable(self.by)


def resolve_pruners(
    trainer: pl.Trainer, request: RegrowRequest
) -> list[tuple[PruningCallback, list[str] | None]]:
    """The pruning callbacks that a request concerns, each with the patterns that match in it."""
    callbacks, patterns = pruners(trainer), check_patterns("names", request.names)
    if patterns is None:
        if len(callbacks) > 1:
            keys = ", ".join(callback.state_key for callback in callbacks)
            raise ConfigError(
                f"the Trainer has {len(callbacks)} pruning callbacks ({keys}): write "
                "names=[...] with layers of one of them in Regrow"
            )
        return [(callbacks[0], None)]
    matches: dict[int, list[str]] = {}
    for pattern in patterns:
        numbers = [n for n, callback in enumerate(callbacks) if _matches(callback, pattern)]
        if not numbers:
            callbacks[0].pruner.named(pattern)  # raises, with similar names
        for number in numbers:
            matches.setdefault(number, []).append(pattern)
    if len(matches) > 1 and request.count is not None:
        raise ConfigError(
            f"count={request.count} cannot be shared among {len(matches)} pruning callbacks: write "
            "fraction=, or names of one of them"
        )
    return [(callbacks[number], names) for number, names in matches.items()]


def check_request(trainer: pl.Trainer, request: RegrowRequest) -> None:
    """Check that a request can be carried out in this fit."""
    for callback, names in resolve_pruners(trainer, request):
        pruner, targets = callback.pruner, callback.pruner.named(names)
        if pruner.state.freezer.check(request.train) != "all":
            check_combination(trainer, (FREEZING,))
        if isinstance(pruner, ChannelPruner):
            check_regrowth(request.by, request.init)
        elif pruner.state.shards.ranks is not None:
            growth, initializer = get_growth_criterion(request.by), make_initializer(request.init)
            check_supports_sharding(growth, initializer, pruner.targets)
        weights = sum(target.parameter.numel() for target in targets)
        if request.count is not None and request.count > weights:
            raise ConfigError(f"count={request.count} is more than all {weights} weights")
        single = isinstance(pruner, Pruner) and pruner.config.granularity == "weight"
        if single and not callable(request.by):
            check_makes_single_weights(make_initializer(request.init))
        if pruner.state.soft:
            raise ConfigError("soft=True brings weights back at each event: leave Regrow out")
        for what, given, names_removed in (
            ("by", request.by, ("removed", removed_growth)),
            ("init", request.init, ("removed", removed_values)),
        ):
            if given in names_removed and pruner.state.removed_weights is None:
                raise ConfigError(
                    f"{what}='removed' needs the removed values: write keep_removed=True in "
                    f"{type(callback).__name__}"
                )
        if request.by in ("momentum", momentum_growth) and not pruner.state.averages_gradients:
            raise ConfigError(
                "by='momentum' needs the mean dense gradient, which DynamicSparseTraining("
                "grow='momentum') tracks: write by='gradient'"
            )
        parameters = {id(target.parameter) for target in targets}
        trained = map(trained_parameters, trainer.optimizers)
        if request.dense and not any(parameters <= ids for ids in trained):
            raise ConfigError(
                "growth by gradients needs one optimizer that trains all parameters that may "
                "regrow (frozen layers, or one optimizer per part?): write names=[...]"
            )


def _matches(callback: PruningCallback, pattern: str) -> bool:
    try:
        return bool(callback.pruner.named(pattern))
    except ConfigError:
        return False
