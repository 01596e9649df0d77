# SPDX-License-Identifier: MIT
"""MagnitudePruning: one-shot, gradual and iterative pruning of weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Final

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.session import GradualMagnitude, PruningSession
from regrow.callbacks.rewind import Rewind, make_rewind
from regrow.callbacks.support.event_refit import EventRefit, make_refit
from regrow.criteria.base import TrackingCriterion
from regrow.pruning.config import PruningConfig
from regrow.pruning.migration import answer_other_arguments
from regrow.pruning.pruner import Pruner
from regrow.pruning.state import HistoryEntry
from regrow.schedules.base import Milestone, Schedule
from regrow.schedules.iterative import Exponential
from regrow.schedules.one_shot import Table
from regrow.schedules.registry import make_schedule
from regrow.schedules.time import TimeLike
from regrow.utils.errors import ConfigError, check_bool, check_keep_removed

# A separate object, to distinguish 0.9 written by a user from the default.
DEFAULT_SPARSITY: Final = float("0.9")


class MagnitudePruning(PruningCallback[Pruner]):
    """Prune weights to a target sparsity by a schedule, and keep them at zero.

    By default a cubic schedule from 20 % to 75 % of the fit, with all layers ranked together by
    |w|. Averages (EMA, SWA) are masked too; regrown weights start there with the model's value.

    Args:
        sparsity: Fraction of the selected weights to prune, in [0, 1), reached exactly. Default: a
            table's last row, the end of an exponential schedule, or 0.9.
        threshold: Prune the weights whose score is below it instead of a fraction: by magnitude
            |w| < threshold, with criterion "relative_magnitude" |w| < threshold std(w). It rises
            from 0 by the schedule (a `Table` lists those below 1); pruned weights stay pruned.
        schedule: "one_shot", "linear", "cubic", "cosine", "exponential", "cyclic" or "acdc" with
            the three times below, or a schedule object.
        begin: First event: "3ep", "500it", or a fraction of the fit; None: 0.2.
        end: Last event, which reaches the target; None: 0.75.
        every: Time between events; None: 0.01.
        distribution: "global", "uniform", "erk" or "lamp".
        criterion: "magnitude", "relative_magnitude" (|w| / std(w) of its layer), "random",
            "gradient", "taylor", "snip", "movement", "block_fisher", a callable
            `(weight, grad) -> scores` of the weight's shape, or a `TrackingCriterion`.
        granularity: "weight", "2:4" (any "n:m"), "block:4x4" or "head" (of attention).
        on_misfit: What to do with layers that groups or blocks do not divide: "raise" an error that
            lists them, or "skip" them with a warning.
        layers: Targets of single layers, `{"*.fc.weight": 0.5}`; `sparsity` applies to the others.
        min_density: Fraction of its weights that each layer keeps at least, those with a separate
            target excepted.
        include: Patterns of parameters or modules to prune; None: the weights of convolutions,
            Linear and recurrent layers and attention.
        exclude: Patterns to leave dense; "@first", "@last", "@depthwise" name layers.
        rewind: Time to which weights and learning rate rewind after each event, or a `Rewind`.
        soft: Whether dense weights keep training under the masks and may return at the next event
            (dynamic network surgery); needs one more copy of the weights.
        refit: Whether each event ends with a least-squares refit of kept weights and biases, by
            which layers keep the outputs that they had before it; see `regrow.calibrate`. It reads
            1,024 training examples on each rank. `unprune` restores what has not trained since.
        keep_removed: What is stored for `unprune`, in host memory and in checkpoints: True
            (values), "moments" (values and optimizer state) or False.
        from_zeros: Whether weights that are exactly zero when the fit starts, as in a network that
            was pruned before, are masked from then on.
        seed: Seed of random criteria.
        on_change: What to do on resume if max_epochs, batch size or ranks moved the remaining
            events: "refuse" (raise), "keep" their steps, or "stretch" them.

    Raises:
        ConfigError: For invalid settings, at construction where possible, else before the first
            step.
        StateError: For models and checkpoints that do not match.

    Source: Han et al. 2015 (magnitude); Zhu and Gupta 2017 (gradual); Frankle and Carbin 2019
    (iterative).

    Example:
        >>> MagnitudePruning(90)
        Traceback (most recent call last):
            ...
        regrow.ConfigError: sparsity must be in [0, 1), got 90: write 0.9 for 90 %
    """

    @answer_other_arguments
    def __init__(
        self,
        sparsity: float | None = DEFAULT_SPARSITY,
        *,
        threshold: float | None = None,
        schedule: str | Schedule = "cubic",
        begin: TimeLike | None = None,
        end: TimeLike | None = None,
        every: TimeLike | None = None,
        distribution: str = "global",
        criterion: str | TrackingCriterion | Callable[..., Tensor] = "magnitude",
        granularity: str = "weight",
        on_misfit: str = "raise",
        layers: dict[str, float] | None = None,
        min_density: float = 0.0,
        include: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        rewind: TimeLike | Rewind | None = None,
        soft: bool = False,
        refit: bool = False,
        keep_removed: bool | str = True,
        from_zeros: bool = False,
        seed: int = 0,
        on_change: str = "refuse",
    ) -> None:
        check_bool("soft", soft)
        keep = check_keep_removed(keep_removed)
        method = PruningConfig(
            criterion,
            distribution,
            granularity,
            layers,
            include,
            exclude,
            seed,
            on_misfit,
            min_density,
            threshold,
        )
        chosen = make_schedule(schedule, begin, end, every)
        if threshold is None:
            final = _check_sparsity(sparsity, chosen, method)
        else:
            final = _check_threshold(sparsity, chosen, method.check_threshold(threshold))
        if check_bool("refit", refit) and soft:
            raise ConfigError(
                "soft=True trains dense weights under the masks, which refit=True would replace: "
                "leave one of them out"
            )
        kind = GradualMagnitude if threshold is None else GradualThreshold
        strategy = kind(method, keep, soft, from_zeros)
        children = (*make_refit(refit, strategy.config), *make_rewind(rewind))
        super().__init__(strategy, chosen, final, on_change, children)

    def unprune(self, names: Iterable[str] | str | None = None) -> HistoryEntry:
        """Restore removed values, and refitted ones that have not been trained since."""
        entry = super().unprune(names)
        for child in self.children:
            if isinstance(child, EventRefit):
                child.refitted.restore(self.pruner.model, names)
        return entry

    def prune_below(self, threshold: float) -> HistoryEntry:
        """Prune now, outside of the schedule; see `Pruner.prune_below`."""
        return self.session.change(
            lambda optimizers: self.pruner.prune_below(threshold, optimizers)
        )


class ThresholdPruner(Pruner):
    """A pruner whose schedule plans thresholds; how sparse these make the model depends on it.

    Its progress is the highest threshold of its events since weights last returned.
    """

    def progress_towards(self, final: float) -> float:
        prunes = itertools.takewhile(
            lambda entry: entry["kind"] in ("prune", "compact"), reversed(self.history)
        )
        return min(max((entry.get("threshold", 0.0) for entry in prunes), default=0.0), final)

    def units(self, sparsity: float) -> int:
        return round(sparsity * 2**64)

    def check_reachable(self, sparsity: float) -> None:
        return


class GradualThreshold(GradualMagnitude):
    """Prunes the weights below the threshold of each milestone."""

    unit = "threshold"

    def make_pruner(self, model: nn.Module) -> Pruner:
        return ThresholdPruner(model, self.config, keep_removed=self.keep_removed, soft=self.soft)

    def apply(
        self, session: PruningSession[Pruner], due: Milestone, optimizers: list[Optimizer]
    ) -> HistoryEntry | None:
        if due.sparsity == 0:  # a dense phase
            return super().apply(session, due, optimizers)
        return session.pruner.prune_below(due.sparsity, optimizers)


def _check_sparsity(sparsity: float | None, schedule: Schedule, method: PruningConfig) -> float:
    """Return the final sparsity: the given one, or that of the schedule."""
    if sparsity is DEFAULT_SPARSITY and isinstance(schedule, (Exponential, Table)):
        sparsity = sparsity if schedule.final is None else schedule.final
    final = method.check_target(sparsity)
    if final == 0 and method.layers:
        raise ConfigError(
            f"sparsity=0 leaves layers={dict(method.layers)} nothing to move in proportion to: "
            "write include=[...] with these layers, and their sparsity as sparsity"
        )
    return final


def _check_threshold(sparsity: float | None, schedule: Schedule, threshold: float) -> float:
    """Return the final threshold, if nothing given beside it asks for a sparsity."""
    if sparsity is not None and sparsity is not DEFAULT_SPARSITY:
        raise ConfigError(
            f"sparsity={sparsity} and threshold={threshold}: how sparse a threshold makes the "
            "model depends on its weights: write one of the two (in a config, sparsity: null)"
        )
    if isinstance(schedule, Exponential):
        raise ConfigError(
            f"{schedule} prunes a fraction of the remaining weights in each round, and "
            f"threshold={threshold} is no fraction: write schedule='linear' with the same every"
        )
    if isinstance(schedule, Table) and schedule.final != threshold:
        raise ConfigError(
            f"the table ends at threshold {schedule.final}, but threshold={threshold} was asked "
            "for: make them the same"
        )
    return threshold
