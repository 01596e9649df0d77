# SPDX-License-Identifier: MIT
"""MagnitudePruning."""

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
    """Prunes to a target sparsity by a schedule, and holds it.

    One-shot, gradual and iterative pruning are schedules; by default a cubic one from 20 % to 75 %
    of the fit, ranking all layers together by |w|. Averages (EMA, SWA) obey the masks too, and
    what comes back begins there with the value that the model has.

    Args:
        sparsity: Fraction of the selected weights to prune, in [0, 1); hit exactly. Left out, a
            table's last row, or the end of an exponential schedule's rounds.
        schedule: "one_shot", "linear", "cubic", "cosine", "exponential", "cyclic" or "acdc" with
            the times below, or an object with its own.
        begin: First event: "3ep", "500it", a fraction of the fit; None: 0.2.
        end: Last event, which lands on the target; None: 0.75.
        every: Time between events; None: 0.01.
        distribution: "global", "uniform", "erk" or "lamp".
        criterion: "magnitude", "random", "gradient", "taylor", "snip", "movement", a callable
            `(weight, grad) -> scores` of the weight's shape, or an object that tracks gradients.
        granularity: "weight", "2:4" (any "n:m") or "block:4x4".
        layers: Own targets for some layers, `{"*.fc.weight": 0.5}`; `sparsity` is then the
            others'.
        include: Patterns of parameters or modules to prune; None: all Conv, ConvTranspose and
            Linear weights.
        exclude: Patterns of those to leave dense; "@first", "@last", "@depthwise" name layers.
        rewind: Where weights and learning rate go back to after each event: "500it", "3ep", "0it",
            or a `Rewind` with settings of its own.
        soft: Whether dense weights keep training under the masks and may return at the next
            event (dynamic network surgery): the network computes with masked weights, the
            optimizer updates dense ones. Costs one more copy of the weights.
        keep_removed: What is kept for `unprune`, one compact tensor a parameter in host memory and
            in checkpoints: True (values), "moments" (values and optimizer moments) or False.
        seed: For random criteria.
        on_change: What a resume does if max_epochs, batch size or ranks moved the events still to
            come: "refuse", "keep" their steps, or "stretch" them.

    Raises:
        ConfigError: For settings that cannot be meant, at construction where possible, else before
            the first step.
        StateError: For models and checkpoints that do not fit.

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
        layers: dict[str, float] | None = None,
        include: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        rewind: TimeLike | Rewind | None = None,
        soft: bool = False,
        keep_removed: bool | str = True,
        seed: int = 0,
        on_change: str = "refuse",
    ) -> None:
        if not isinstance(soft, bool):
            raise ConfigError(f"soft must be True or False, got {soft!r}")
        keep = check_keep_removed(keep_removed)
        method = PruningConfig(criterion, distribution, granularity, layers, include, exclude, seed)
        chosen = make_schedule(schedule, begin, end, every)
        if sparsity is DEFAULT_SPARSITY and isinstance(chosen, (Exponential, Table)):
            sparsity = sparsity if chosen.final is None else chosen.final
        final = method.check_target(sparsity)
        if final == 0 and layers:
            raise ConfigError(
                f"sparsity=0 leaves layers={dict(layers)} nothing to move in proportion to: write "
                "include=[...] with these layers, and their sparsity as sparsity"
            )
        strategy = GradualMagnitude(method, keep, soft)
        super().__init__(strategy, chosen, final, on_change, make_rewind(rewind))
