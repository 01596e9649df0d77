# SPDX-License-Identifier: MIT
"""Which callbacks cannot be combined: one table over their capability flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import lightning.pytorch as pl
from lightning.pytorch.callbacks import StochasticWeightAveraging

from regrow.callbacks.core.base import Callback
from regrow.callbacks.core.dispatch import Dispatcher
from regrow.callbacks.core.session import PruningSession
from regrow.channels.pruner import ChannelPruner
from regrow.distributed.shard import is_dtensor
from regrow.pruning.base import BasePruner
from regrow.utils.errors import ConfigError

# What a condition returns: the names that a row's message is formatted with, or None.
Found = dict[str, object] | None


@dataclass(frozen=True)
class Combination:
    """The callbacks of a fit.

    Attributes:
        suite: Those of this suite, children included.
        others: All of the Trainer's callbacks.
    """

    suite: tuple[Callback, ...]
    others: tuple[pl.Callback, ...]

    def first(self, flag: str) -> Callback | None:
        """The first callback that has a capability."""
        return next((c for c in self.suite if getattr(c, flag)), None)

    @property
    def pruning(self) -> list[tuple[Callback, BasePruner | None]]:
        """The pruning callbacks, each with its pruner where there is one."""
        sessions = [(c, getattr(c, "session", None)) for c in self.suite]
        return [(c, s.current) for c, s in sessions if isinstance(s, PruningSession)]

    @property
    def pairs(self) -> Iterator[tuple[Callback, BasePruner, Callback, BasePruner]]:
        """All ordered pairs of pruning callbacks whose pruners exist."""
        made = [(c, p) for c, p in self.pruning if p is not None]
        return ((a, p, b, q) for a, p in made for b, q in made if a is not b)


@dataclass(frozen=True)
class Row:
    """A combination that raises.

    Attributes:
        name: What is combined.
        condition: The names for the message where the combination is there; None where not.
        message: A format string: what is wrong, and what to write instead.
    """

    name: str
    condition: Callable[[Combination], Found]
    message: str


def _both(one: str, other: str) -> Callable[[Combination], Found]:
    """Whether two different callbacks have one capability each."""

    def condition(given: Combination) -> Found:
        for first in given.suite:
            for second in given.suite:
                if first is not second and getattr(first, one) and getattr(second, other):
                    return {"one": type(first).__name__, "other": type(second).__name__}
        return None

    return condition


def _shared(given: BasePruner, other: BasePruner) -> str:
    """The parameters that two pruners mask, by name; '' if there are none."""
    theirs = {id(target.parameter) for target in other.targets}
    return ", ".join([t.name for t in given.targets if id(t.parameter) in theirs][:3])


def _whole_beside_sharded(given: Combination) -> Found:
    callback = given.first("needs_whole_parameters")
    for _, pruner in given.pruning:
        if callback is None or pruner is None or isinstance(pruner, ChannelPruner):
            continue
        sharded = [t.name for t in pruner.targets if is_dtensor(t.parameter)]
        if sharded:
            return {"one": type(callback).__name__, "names": ", ".join(sharded[:3])}
    return None


def _restores_beside_swa(given: Combination) -> Found:
    swa = any(isinstance(c, StochasticWeightAveraging) for c in given.others)
    callback = given.first("restores_weights")
    return {"one": type(callback).__name__} if swa and callback is not None else None


def _two_rewinds(given: Combination) -> Found:
    return {} if sum(callback.rewinds for callback in given.suite) > 1 else None


def _rewind_alone(given: Combination) -> Found:
    return {} if given.first("rewinds") and not given.pruning else None


def _two_cut(given: Combination) -> Found:
    cutting = [c for c, _ in given.pruning if c.cuts_channels]
    return {"one": type(cutting[0]).__name__} if len(cutting) > 1 else None


def _cut_beside(given: Combination) -> Found:
    if given.first("changes_shapes") is None:
        return None
    for callback, _ in given.pruning:
        for flag, what in (
            ("constant_sparsity", "constant sparsity"),
            ("soft", "soft=True"),
            ("tracks_gradients", "a criterion that tracks gradients"),
        ):
            if getattr(callback, flag):
                return {"one": type(callback).__name__, "what": what}
    return None


def _soft_shared(given: Combination) -> Found:
    for one, pruner, _, other in given.pairs:
        if one.soft and (names := _shared(pruner, other)):
            return {"names": names}
    return None


def _learned_shared(given: Combination) -> Found:
    for one, pruner, other, theirs in given.pairs:
        if one.learns_masks and (names := _shared(pruner, theirs)):
            return {"other": type(other).__name__, "names": names}
    return None


TABLE = (
    Row(
        "rising sparsity beside constant sparsity",
        _both("needs_rising_sparsity", "constant_sparsity"),
        "{one} answers events that prune further, and {other} has its sparsity from the first "
        "step on: leave {one} out, or write MagnitudePruning(0.9) instead",
    ),
    Row(
        "restoring weights beside StochasticWeightAveraging",
        _restores_beside_swa,
        "{one} takes weights back to an earlier moment, where StochasticWeightAveraging cannot "
        "follow, which replaces the learning-rate schedule: write WeightAveraging(), which "
        "averages all steps alike, or leave {one} out",
    ),
    Row(
        "two Rewind",
        _two_rewinds,
        "a fit goes back one way: rewind= of the pruning callback and Rewind beside it are the "
        "same, write one of them",
    ),
    Row(
        "Rewind beside soft=True",
        _both("rewinds", "soft"),
        "rewinding does not reach the dense weights of soft=True: leave one of them out",
    ),
    Row(
        "Rewind without a pruning callback",
        _rewind_alone,
        "Rewind needs a pruning callback: add MagnitudePruning(0.9, "
        "schedule=Exponential(0.2, every='10ep'))",
    ),
    Row(
        "whole parameters beside sharded ones",
        _whole_beside_sharded,
        "parameters are sharded among ranks ({names}, ...), and {one} remembers whole ones: leave "
        "it out, or write strategy='ddp'",
    ),
    Row(
        "two ChannelPruning",
        _two_cut,
        "two {one} would cut the same module: write one, with include= of both",
    ),
    Row(
        "learned masks beside channels",
        _both("cuts_channels", "learns_masks"),
        "{one} cuts weights of which {other} keeps dense ones: write one of them",
    ),
    Row(
        "cutting channels beside statistics of single weights",
        _cut_beside,
        "{one} with {what} holds tensors that do not follow a cut: write compact=None in "
        "ChannelPruning, or another pruning of weights",
    ),
    Row(
        "learned masks of parameters that another callback prunes",
        _learned_shared,
        "{other} prunes {names} too, whose masks are learned: tell them apart with include= and "
        "exclude=",
    ),
    Row(
        "soft=True of parameters that another callback prunes",
        _soft_shared,
        "soft=True lets {names} go on learning beneath masks, and another pruning callback masks "
        "them too: write exclude=[...] in one of the two",
    ),
)


# Asked only when weights are to be frozen within a fit: `regrow(train=...)`.
FREEZING = Row(
    "partial training beside dense copies",
    lambda given: (
        None
        if (callback := given.first("keeps_dense_copy")) is None
        else {"one": type(callback).__name__}
    ),
    "{one} keeps dense values beside the weights of the network (soft=True, learned masks), and "
    "holding weights would write over them: write train='all'",
)


def describe_table() -> Iterator[tuple[str, str]]:
    """Name and message of each row, for the documentation."""
    return ((row.name, row.message) for row in (*TABLE, FREEZING))


def check_combination(trainer: pl.Trainer, rows: tuple[Row, ...] = TABLE) -> None:
    """Check the callbacks of a Trainer against the table.

    Asked when a fit starts and again when training starts: some rows need the pruners, which are
    made in between.

    Raises:
        ConfigError: For the first row whose condition is met.
    """
    callbacks = tuple(trainer.callbacks)  # type: ignore[attr-defined]
    given = Combination(tuple(Dispatcher.of(trainer).callbacks), callbacks)
    for row in rows:
        found = row.condition(given)
        if found is not None:
            raise ConfigError(row.message.format(**found))


def check_can_freeze(trainer: pl.Trainer) -> None:
    """Check that some weights may be frozen within a fit.

    Raises:
        ConfigError: If a callback keeps dense values beside those of the network.
    """
    check_combination(trainer, (FREEZING,))
