# SPDX-License-Identifier: MIT
"""MagnitudePruning: one-shot, gradual and iterative pruning of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor

from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.session import GradualMagnitude
from regrow.callbacks.rewind import Rewind, make_rewind
from regrow.criteria.base import TrackingCriterion
from regrow.pruning.config import PruningConfig
from regrow.pruning.pruner import Pruner
from regrow.schedules.base import Schedule
from regrow.schedules.iterative import Exponential
from regrow.schedules.one_shot import Table
from regrow.schedules.registry import make_schedule
from regrow.schedules.time import TimeLike
from regrow.utils.errors import ConfigError, check_keep_removed

# A separate object, to distinguish 0.9 written by a user from the default.
DEFAULT_SPARSITY: Final = float("0.9")


class MagnitudePruning(PruningCallback[Pruner]):
    """Prune weights to a target sparsity by a schedule, and keep them at zero.

    By default a cubic schedule from 20 % to 75 % of the fit, with all layers ranked together by
    |w|. Averages (EMA, SWA) are masked too; regrown weights start there with the model's value.

    Args:
        sparsity: Fraction of the selected weights to prune, in [0, 1), reached exactly. Default: a
            table's last row, the end of an exponential schedule, or 0.9.
        schedule: "one_shot", "linear", "cubic", "cosine", "exponential", "cyclic" or "acdc" with
            the three times below, or a schedule object.
        begin: First event: "3ep", "500it", or a fraction of the fit; None: 0.2.
        end: Last event, which reaches the target; None: 0.75.
        every: Time between events; None: 0.01.
        distribution: "global", "uniform", "erk" or "lamp".
        criterion: "magnitude", "random", "gradient", "taylor", "snip", "movement", a callable
            `(weight, grad) -> scores` of the weight's shape, or a `TrackingCriterion`.
        granularity: "weight", "2:4" (any "n:m") or "block:4x4".
        on_misfit: What to do with layers that groups or blocks do not divide: "raise" an error that
            lists them, or "skip" them with a warning.
        layers: Targets of single layers, `{"*.fc.weight": 0.5}`; `sparsity` applies to the others.
        min_density: Fraction of its weights that each layer keeps at least, those with a separate
            target excepted.
        include: Patterns of parameters or modules to prune; None: all Conv, ConvTranspose and
            Linear weights.
        exclude: Patterns to leave dense; "@first", "@last", "@depthwise" name layers.
        rewind: Time to which weights and learning rate rewind after each event, or a `Rewind`.
        soft: Whether dense weights keep training under the masks and may return at the next event
            (dynamic network surgery); needs one more copy of the weights.
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

    def __init__(
        self,
        sparsity: float = DEFAULT_SPARSITY,
        *,
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
        keep_removed: bool | str = True,
        from_zeros: bool = False,
        seed: int = 0,
        on_change: str = "refuse",
    ) -> None:
        if not isinstance(soft, bool):
            raise ConfigError(f"soft must be True or False, got {soft!r}")
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
        )
        chosen = make_schedule(schedule, begin, end, every)
        if sparsity is DEFAULT_SPARSITY and isinstance(chosen, (Exponential, Table)):
            sparsity = sparsity if chosen.final is None else chosen.final
        final = method.check_target(sparsity)
        if final == 0 and layers:
            raise ConfigError(
                f"sparsity=0 leaves layers={dict(layers)} nothing to move in proportion to: write "
                "include=[...] with these layers, and their sparsity as sparsity"
            )
        strategy = GradualMagnitude(method, keep, soft, from_zeros)
        super().__init__(strategy, chosen, final, on_change, make_rewind(rewind))
