# SPDX-License-Identifier: MIT
"""Iterative pruning: a fixed fraction of the remaining weights per round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from regrow.schedules.base import Milestone, PruningPlan
from regrow.schedules.time import Time, TimeLike, Timeline, parse_time
from regrow.utils.errors import ConfigError, check_count, check_rate


@dataclass(frozen=True)
class Exponential:
    """Prune a fixed fraction of the remaining weights in each round (iterative pruning).

    After k rounds s_k = 1 - (1 - rate)^k; the last round reaches the target exactly.

    Attributes:
        rate: Fraction of the remaining weights that a round removes, in (0, 1).
        every: Training time of a round.
        rounds: Number of rounds; None: until the target.
        begin: Time of the first event; None: after one `every`.

    Source: Frankle and Carbin 2019, section 2 (20 % a round).

    Example:
        >>> plan = Exponential(rate=0.5, every="10it").plan(0.8, Timeline(total=40))
        >>> [(m.step, m.sparsity) for m in plan]
        [(10, 0.5), (20, 0.75), (30, 0.8)]
    """

    rate: float = 0.2
    every: TimeLike = 0.01
    rounds: int | None = None
    begin: TimeLike | None = None

    def __post_init__(self) -> None:
        check_rate("rate", self.rate)
        if self.rounds is not None:
            check_count("rounds", self.rounds)
        if any(time.amount == 0 for time in self.times()[:1]):
            raise ConfigError(f"every must be above 0, got {self.every}: write '10ep'")

    def times(self) -> tuple[Time, ...]:
        every = parse_time("every", self.every)
        return (every, every if self.begin is None else parse_time("begin", self.begin))

    @property
    def final(self) -> float | None:
        """The sparsity after `rounds` rounds; None if rounds is None."""
        return None if self.rounds is None else 1 - (1 - self.rate) ** self.rounds

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        if self.final is not None and not math.isclose(self.final, target, abs_tol=1e-9):
            raise ConfigError(
                f"{self.rounds} rounds at rate {self.rate} end at sparsity {self.final:.6g}, but "
                f"sparsity={target} was asked for: leave out rounds, or leave out sparsity"
            )
        # tolerance, so that a target of 1 - 0.8^10 is ten rounds and not eleven
        count = math.ceil(self._rounds(start, target) - 1e-9)
        if count <= 0:
            return ()
        every, begin = self.times()
        enough = timeline.after(timeline.step(begin), every, count) + 1
        steps = timeline.repeat(begin, every, timeline.end or enough)
        if len(steps) < count:
            raise ConfigError(
                f"sparsity {target:g} takes {count} rounds of {every} at rate {self.rate}, "
                f"the fit has room for {len(steps)}: train longer, or write a shorter every, a "
                "higher rate or a lower sparsity"
            )
        levels = [1 - (1 - start) * (1 - self.rate) ** (k + 1) for k in range(count - 1)]
        return tuple(map(Milestone, steps[:count], [*levels, target]))

    def nearest_round(self, start: float, target: float, units: Callable[[float], int]) -> float:
        """Return the exact sparsity from which whole rounds lead to the target, or `start`.

        `start` was rounded to whole units, to which `units` converts a sparsity; it stays unless
        the other is within one of them.
        """
        count = round(self._rounds(start, target))
        exact = 1 - (1 - target) / (1 - self.rate) ** count
        return exact if start and count and abs(units(exact) - units(start)) <= 1 else start

    def layer_sparsity(self, sparsity: float, target: float, own: float) -> float:
        """The layer has a separate rate per round: 1 - (1 - own)^(log(1 - s) / log(1 - s_f))."""
        rounds = math.log(1 - sparsity) / math.log(1 - target) if target else 1.0
        return 1 - math.pow(1 - own, rounds)

    def _rounds(self, start: float, target: float) -> float:
        """The number of rounds from one sparsity to another, not a whole number in general."""
        return math.log((1 - target) / (1 - start)) / math.log(1 - self.rate) if target else 0.0
