# SPDX-License-Identifier: MIT
"""RegrowRequest, its validation, the request file."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import lightning.pytorch as pl

from regrow.callbacks.core.compatibility import check_can_freeze
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
from regrow.pruning.initializers import Initializer, make_initializer
from regrow.pruning.initializers import removed_values as removed_values
from regrow.utils.errors import ConfigError, check_patterns, suggest, write_error
from regrow.utils.optimizers import trained_parameters


@dataclass(frozen=True)
class RegrowRequest:
    """What `regrow` is to be called with.

    Attributes:
        fraction: Of what is pruned; or
        count: how many weights.
        by: Which come back.
        init: With what value.
        names: Patterns of parameters; None: all.
        train: What trains afterwards.

    Raises:
        ConfigError: For a value that cannot be meant.

    Example:
        >>> RegrowRequest(fraction=0.1, by="gradient").dense
        True
    """

    fraction: float | None = None
    count: int | None = None
    by: str | GrowthCriterion = "random"
    init: str | Initializer = "he"
    names: str | list[str] | tuple[str, ...] | None = None
    train: TrainSpec = "all"

    def __post_init__(self) -> None:
        regrow_count(self.fraction, self.count, 0)
        get_growth_criterion(self.by)
        make_initializer(self.init)
        check_patterns("names", self.names)
        check_patterns("train", self.train)

    @property
    def dense(self) -> bool:
        """Whether it waits for dense gradients; any rule of the user's own may look at them."""
        return self.by == "gradient" or callable(self.by)


def parse_request(text: str) -> RegrowRequest:
    """Reads a request.

    Args:
        text: A JSON object such as `{"fraction": 0.1, "by": "random", "init": "he"}`; keys are
            those of `Order`.

    Raises:
        ConfigError: For anything else.

    Example:
        >>> parse_request('{"count": 100, "names": "fc"}').names
        'fc'
    """
    known = [field.name for field in fields(RegrowRequest)]
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"the request is not JSON ({error}): {_EXAMPLE}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"the request must be an object, got {given!r}: {_EXAMPLE}")
    for key in given:
        if key not in known:
            raise ConfigError(f"the request has an unknown key {key!r}: {suggest(key, known)}")
    return RegrowRequest(**given)


class RequestFile:
    """A file that is looked for between steps, and renamed once it was answered.

    Args:
        path: Where it is looked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> str | None:
        """Its text; None where there is none."""
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            return f"unreadable: {error}"  # which is no JSON, and refused as such

    def mark_done(self) -> None:
        """Renames it to NAME.done."""
        with suppress(FileNotFoundError):  # taken away meanwhile
            self.path.replace(self.path.with_name(f"{self.path.name}.done"))

    def mark_rejected(self, why: str) -> None:
        """Rename it to NAME.refused, with the reason at its end.

        Raises:
            StateError: Where that cannot be written; the request stays.
        """
        refused = self.path.with_name(f"{self.path.name}.refused")
        aside, asked = refused.with_name(f".{refused.name}"), b""
        try:
            with suppress(OSError):  # it may be gone, or for nobody to read
                asked = self.path.read_bytes()
            aside.write_bytes(asked + f"\n\nrefused: {why}\n".encode())
            aside.replace(refused)
            self.path.unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise write_error(refused, error) from error


_EXAMPLE = 'write {"fraction": 0.1, "by": "random", "init": "he"}'


def resolve_pruners(
    trainer: pl.Trainer, order: RegrowRequest
) -> list[tuple[PruningCallback, list[str] | None]]:
    """The pruning callbacks that an order means, with the patterns that are theirs.

    Raises:
        ConfigError: If there are several and no names, or a pattern that is nobody's.
    """
    found, patterns = pruners(trainer), check_patterns("names", order.names)
    if patterns is None:
        if len(found) > 1:
            keys = ", ".join(callback.state_key for callback in found)
            raise ConfigError(
                f"the Trainer has {len(found)} pruning callbacks ({keys}), and Regrow must know "
                "whose weights come back: write names=[...], layers of one of them"
            )
        return [(found[0], None)]
    own: dict[int, list[str]] = {}
    for pattern in patterns:
        hits = [number for number, callback in enumerate(found) if _means(callback, pattern)]
        if not hits:
            found[0].pruner.named(pattern)  # says what is near
        for number in hits:
            own.setdefault(number, []).append(pattern)
    if len(own) > 1 and order.count is not None:
        raise ConfigError(
            f"count={order.count} cannot be shared among {len(own)} pruning callbacks: write "
            "fraction=, or names of one of them"
        )
    return [(found[number], names) for number, names in own.items()]


def check_request(trainer: pl.Trainer, order: RegrowRequest) -> None:
    """Check a request that could never be carried out.

    Raises:
        ConfigError: Saying what is lacking.
    """
    for callback, names in resolve_pruners(trainer, order):
        pruner = callback.pruner
        if pruner.state.freezer.check(order.train) != "all":
            check_can_freeze(trainer)
        if isinstance(pruner, ChannelPruner):
            check_regrowth(order.by, order.init)
        elif pruner.state.shards.ranks is not None:
            check_supports_sharding(
                get_growth_criterion(order.by), make_initializer(order.init), pruner.targets
            )
        weights = sum(target.parameter.numel() for target in pruner.named(names))
        if order.count is not None and order.count > weights:
            raise ConfigError(f"count={order.count} is more than all {weights} weights there are")
        if pruner.state.soft:
            raise ConfigError(
                "soft=True brings weights back by itself, at each event: leave Regrow out"
            )
        for what, given, wants in (
            ("by", order.by, ("removed", removed_growth)),
            ("init", order.init, ("removed", removed_values)),
        ):
            if given in wants and pruner.state.removed_weights is None:
                raise ConfigError(
                    f"{what}='removed' needs the removed values: write keep_removed=True in "
                    f"{type(callback).__name__}"
                )
        if order.by in ("momentum", momentum_growth) and not pruner.state.averages_gradients:
            raise ConfigError(
                "by='momentum' needs the mean dense gradient, which DynamicSparseTraining("
                "grow='momentum') tracks: write by='gradient'"
            )
        parameters = {id(target.parameter) for target in pruner.named(names)}
        trained = map(trained_parameters, trainer.optimizers)
        if order.dense and not any(parameters <= ids for ids in trained):
            raise ConfigError(
                "growth that looks at gradients needs one optimizer that trains all the parameters "
                "that may come back (frozen layers, or one optimizer a part?): write names=[...]"
            )


def _means(callback: PruningCallback, pattern: str) -> bool:
    try:
        return bool(callback.pruner.named(pattern))
    except ConfigError:
        return False
