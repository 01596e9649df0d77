# SPDX-License-Identifier: MIT
"""Table of callbacks that cannot be combined, over their capability flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from regrow.callbacks.core.base import Callback
from regrow.callbacks.core.dispatch import suite_callbacks
from regrow.callbacks.core.session import PruningSession
from regrow.channels.pruner import ChannelPruner
from regrow.distributed.shard import is_dtensor
from regrow.pruning.base import BasePruner
from regrow.utils.errors import ConfigError
from regrow.utils.lightning_classes import lightning_classes, pl

# What a condition returns: the values that format a row's message, or None.
Found = dict[str, object] | None


@dataclass(frozen=True)
class Combination:
    """The callbacks of a fit."""

    suite: tuple[Callback, ...]  # of this suite, children included
    all: tuple[pl.Callback, ...]

    def first(self, flag: str) -> Callback | None:
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
    """A combination that raises."""

    name: str  # for the documentation
    condition: Callable[[Combination], Found]
    message: str  # format string: what is wrong, and what to write instead


def _both(one: str, other: str) -> Callable[[Combination], Found]:
    """A condition: two different callbacks have one capability each."""

    def condition(given: Combination) -> Found:
        for first in given.suite:
            for second in given.suite:
                if first is not second and getattr(first, one) and getattr(second, other):
                    return {"one": type(first).__name__, "other": type(second).__name__}
        return None

    return condition


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
    kinds = lightning_classes("callbacks.StochasticWeightAveraging")
    swa = any(isinstance(c, kinds) for c in given.all)
    callback = given.first("restores_weights")
    return {"one": type(callback).__name__} if swa and callback is not None else None


def _beside_model_pruning(given: Combination) -> Found:
    theirs = [c for c in given.all if isinstance(c, lightning_classes("callbacks.ModelPruning"))]
    if not theirs or not given.pruning:
        return None
    return {"one": type(theirs[0]).__name__, "other": type(given.pruning[0][0]).__name__}


def _two_that_cut(given: Combination) -> Found:
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


def _shares_parameters(flag: str) -> Callable[[Combination], Found]:
    """A condition: a callback with a capability prunes parameters that another one prunes too."""

    def condition(given: Combination) -> Found:
        for one, pruner, other, theirs in given.pairs:
            parameters = {id(target.parameter) for target in theirs.targets}
            names = [t.name for t in pruner.targets if id(t.parameter) in parameters]
            if getattr(one, flag) and names:
                return {"other": type(other).__name__, "names": ", ".join(names[:3])}
        return None

    return condition


TABLE = (
    Row(
        "Lightning's ModelPruning",
        _beside_model_pruning,
        "{one} replaces the weights that {other} prunes by products with masks of its own: leave "
        "it out, and write its amount as the sparsity of {other}",
    ),
    Row(
        "rising sparsity beside constant sparsity",
        _both("needs_rising_sparsity", "constant_sparsity"),
        "{one} acts on events that prune further, and {other} has its full sparsity from the first "
        "step: leave {one} out, or write MagnitudePruning(0.9) instead",
    ),
    Row(
        "a search for a sparsity beside a threshold",
        _both("searches_sparsity", "uses_threshold"),
        "{one} searches the highest sparsity within its budget, and the events of {other} have "
        "thresholds: write a sparsity in place of threshold=, or leave {one} out",
    ),
    Row(
        "restoring weights beside StochasticWeightAveraging",
        _restores_beside_swa,
        "{one} restores earlier weights, which StochasticWeightAveraging does not support (it "
        "replaces the learning-rate schedule): write WeightAveraging(), which averages all steps, "
        "or leave {one} out",
    ),
    Row(
        "two Rewind",
        lambda given: {} if sum(callback.rewinds for callback in given.suite) > 1 else None,
        "a fit supports one Rewind: write rewind= in one pruning callback, or one Rewind beside it",
    ),
    Row(
        "Rewind beside soft=True",
        _both("rewinds", "soft"),
        "Rewind does not restore the dense weights of soft=True: leave one of them out",
    ),
    Row(
        "Rewind without a pruning callback",
        lambda given: {} if given.first("rewinds") and not given.pruning else None,
        "Rewind needs a pruning callback: add MagnitudePruning(0.9, "
        "schedule=Exponential(0.2, every='10ep'))",
    ),
    Row(
        "whole parameters beside sharded ones",
        _whole_beside_sharded,
        "parameters are sharded among ranks ({names}, ...), and {one} stores whole ones: leave it "
        "out, or write strategy='ddp'",
    ),
    Row(
        "two ChannelPruning",
        _two_that_cut,
        "two {one} would cut the same module: write one, with include= of both",
    ),
    Row(
        "learned masks beside channels",
        _both("cuts_channels", "learns_masks"),
        "{one} cuts weights of which {other} stores dense copies: write one of them",
    ),
    Row(
        "cutting channels beside statistics of single weights",
        _cut_beside,
        "{one} with {what} stores tensors of the uncut shapes: write compact=None in "
        "ChannelPruning, or another method for the weights",
    ),
    Row(
        "learned masks of parameters that another callback prunes",
        _shares_parameters("learns_masks"),
        "{other} also prunes {names}, whose masks are learned: separate them with include= and "
        "exclude=",
    ),
    Row(
        "soft=True of parameters that another callback prunes",
        _shares_parameters("soft"),
        "soft=True trains the dense weights of {names}, which another pruning callback masks too: "
        "write exclude=[...] in one of the two",
    ),
)


# Checked only when weights are to be frozen within a fit: `regrow(train=...)`.
FREEZING = Row(
    "partial training beside dense copies",
    lambda given: (
        None
        if (callback := given.first("keeps_dense_copy")) is None
        else {"one": type(callback).__name__}
    ),
    "{one} stores dense values beside the weights (soft=True, learned masks), and freezing "
    "weights would overwrite them: write train='all'",
)


def check_combination(trainer: pl.Trainer, rows: tuple[Row, ...] = TABLE) -> None:
    """Check the callbacks of a Trainer against the table.

    Called when a fit starts, before and after each pruner is created: some rows compare pruners.
    """
    callbacks = tuple(trainer.callbacks)  # type: ignore[attr-defined]
    given = Combination(tuple(suite_callbacks(trainer)), callbacks)
    for row in rows:
        values = row.condition(given)
        if values is not None:
            raise ConfigError(row.message.format(**values))
