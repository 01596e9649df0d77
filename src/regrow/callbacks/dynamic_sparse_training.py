# SPDX-License-Identifier: MIT
"""DynamicSparseTraining."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.callbacks.core.checks import waits_for_gradients
from regrow.callbacks.core.gradients import amp_step_skipped, drop_gradients
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.criteria.base import CRITERIA, TrackingCriterion
from regrow.pruning.config import PruningConfig
from regrow.pruning.drop_and_grow import (
    GROW,
    ExploredMask,
    draw_masks,
    drop_and_grow,
    update_gradient_momentum,
)
from regrow.pruning.growth import GrowthCriterion, check_supports_sharding, get_growth_criterion
from regrow.pruning.initializers import (
    Initializer,
    make_initializer,
    original,
    orthogonal,
    removed_values,
)
from regrow.pruning.pruner import Pruner
from regrow.pruning.state import HistoryEntry
from regrow.schedules.base import Milestone, PruningPlan
from regrow.schedules.drop_fraction import DropGrowSchedule, drop_fraction_at
from regrow.schedules.one_shot import OneShot
from regrow.schedules.time import TimeLike, Timeline
from regrow.utils.errors import ConfigError, check_choice, check_rate
from regrow.utils.modes import no_compile


class DynamicSparseTraining(PruningCallback):
    """Trains a sparse network whose masks move: RigL, SET, SNFS, or static masks.

    Masks are drawn by lot at the fit's first step. Then, every `every` until `end`, each layer
    drops its weakest weights and grows as many elsewhere, fewer from update to update by a cosine;
    the number of kept weights never changes, layer by layer.

    Growth by gradient or momentum acts within the update step, on its dense gradients; by lot, at
    the batch's start. `SparsityMonitor` logs `pruning/overlap` (of the masks before and after the
    last update) and `pruning/explored` (the fraction of places that were ever kept).
    Averages (EMA, SWA) follow the masks.

    Args:
        sparsity: Fraction of the selected weights that is masked from the start, in [0, 1).
        drop: Which weights go: the name of a criterion, or a criterion (see `MagnitudePruning`).
        grow: Where as many come back: "gradient" (RigL), "random" (SET), "momentum" (SNFS), "none"
            (static: no update at all) or a rule (see `regrow.pruning.growth.GrowthCriterion`).
        distribution: "erk" or "uniform".
        init: With what value they come back: see `regrow.pruning.initializers`.
        drop_fraction: Share of a layer's kept weights that the first update would drop, in (0, 1).
        every: Time between updates: "100it", "1ep", a fraction of the fit.
        end: From when on masks stand still.
        include: Patterns of parameters or modules to prune; None: all Conv, ConvTranspose and
            Linear weights.
        exclude: Patterns of those to leave dense; "@first", "@last", "@depthwise" name layers.
        granularity: "weight"; static masks may be "2:4" (any "n:m") or "block:4x4" too.
        seed: For the masks drawn at the start, growth and initialisers.
        skip_update: Whether the step whose gradients grew weights changes masks only, as in RigL's
            paper; else it trains the grown weights too.
        keep_removed: Whether removed values go to the vault, for `unprune` and `init="removed"`.
        on_change: What a resume does if max_epochs, batch size or ranks moved the updates still to
            come: "refuse", "keep" their steps, or "stretch" them.

    Raises:
        ConfigError: For settings that cannot be meant, at construction where possible, else before
            the first step.
        StateError: For models and checkpoints that do not fit.

    Source: Evci et al. 2020 (RigL); Mocanu et al. 2018 (SET); Dettmers and Zettlemoyer 2019 (SNFS).

    Example:
        >>> DynamicSparseTraining(0.9, grow="gradients")
        Traceback (most recent call last):
            ...
        regrow.ConfigError: grow must be one of gradient, momentum, none, random, got \
'gradients': did you mean 'gradient'?
    """

    constant_sparsity = True

    def __init__(
        self,
        sparsity: float = 0.9,
        *,
        drop: str | TrackingCriterion | Callable[..., Tensor] = "magnitude",
        grow: str | GrowthCriterion = "gradient",
        distribution: str = "erk",
        init: str | Initializer = "zero",
        drop_fraction: float = 0.3,
        every: TimeLike = "100it",
        end: TimeLike = 0.75,
        include: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        granularity: str = "weight",
        seed: int = 0,
        skip_update: bool = False,
        keep_removed: bool = False,
        on_change: str = "refuse",
    ) -> None:
        if isinstance(drop, str):
            check_choice("drop", drop, CRITERIA)
        if isinstance(grow, str) or not callable(grow):
            check_choice("grow", grow, (*GROW, "none"))
        check_choice("distribution", distribution, ("erk", "uniform"))
        self.grow = grow
        self.drop_fraction = check_rate("drop_fraction", drop_fraction)
        self.initializer = make_initializer(init)
        self.skip_update = skip_update
        self.updates = DropGrowSchedule(every, end)
        self.explored = ExploredMask()
        self._end = 0
        self._skips = False
        if self.moves and granularity != "weight":
            raise ConfigError(
                f"granularity={granularity!r} cannot be grown, only single weights can: write "
                "granularity='weight', or grow='none' for masks that stand still"
            )
        if skip_update and not self._by_gradients:
            raise ConfigError(
                f"skip_update=True skips the step whose gradients grow weights, grow={grow!r} "
                "looks at none: leave skip_update out, or write grow='gradient'"
            )
        if self.initializer is orthogonal:
            raise ConfigError(
                "init='orthogonal' makes whole filters, and single weights are grown here: write "
                "init='zero' or 'he'"
            )
        if self.initializer is removed_values and not keep_removed:
            raise ConfigError("init='removed' needs the removed values: write keep_removed=True")
        method = PruningConfig(drop, distribution, granularity, None, include, exclude, seed)
        final = method.check_target(sparsity)
        schedule = self.updates if self.moves else OneShot(0)
        super().__init__(method, schedule, final, bool(keep_removed), on_change)

    @property
    def moves(self) -> bool:
        """Whether masks change after they were drawn."""
        return self.grow != "none"

    @property
    def reached(self) -> bool:
        """Whether the network is as sparse as asked for: from the first step on."""
        return self._pruner is not None and self.progress.started and self._complete

    @property
    def at_target(self) -> bool:
        return self.reached

    def resolve(self, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        """The start and the updates of a fit with this timeline, without a Trainer."""
        return tuple(self.schedule.plan(self.final, timeline, start)) if self.final else ()

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        due = self._due()
        # the masks to start from wait for nothing: no step is dense
        if due is not None and (not self.pruner.pruned or not waits_for_gradients(self.pruner)):
            self._fire(due)

    def on_gradients(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Acts on dense, unscaled, unclipped gradients: the running mean, then a due update."""
        if self.grow == "momentum" and not amp_step_skipped(trainer, optimizer):
            update_gradient_momentum(self.pruner, optimizer)
        super().on_gradients(trainer, optimizer)

    @no_compile
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self._skips:  # only now, when every pruner has seen the gradients
            drop_gradients(trainer, optimizer)
        self._skips = False

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self._loaded is None:  # else it is all there
            pruner = self._pruner
            means = {} if pruner is None else pruner.shards.gather(pruner.state.momenta)
            momenta = {name: mean.clone() for name, mean in means.items()}  # they go on in place
            state |= {"end": self._end, "momenta": momenta, "explored": self.explored.state_dict()}
        return state

    @property
    def _by_gradients(self) -> bool:
        return self.grow not in ("random", "none")

    @property
    def _complete(self) -> bool:
        return self.pruner.units(self.pruner.progress_towards(self.final)) >= self.pruner.units(
            self.final
        )

    @property
    def pruner(self) -> Pruner:
        pruner = super().pruner
        assert isinstance(pruner, Pruner)
        return pruner

    def _new_pruner(self, model: nn.Module) -> Pruner:
        pruner = super()._new_pruner(model)
        assert isinstance(pruner, Pruner)
        pruner.needs_gradients |= self._by_gradients
        pruner.state.averages_gradients = self.grow == "momentum"
        if self.moves and pruner.shards.ranks is not None:
            check_supports_sharding(
                get_growth_criterion(self.grow), self.initializer, pruner.targets
            )
        return pruner

    def _adopt(self, state: Mapping[str, Any]) -> None:
        super()._adopt(state)
        self._end = int(state["end"])
        parameters = self.pruner.enforcer.parameters
        self.pruner.state.momenta = {
            name: mean.to(parameters[name].device, copy=True)
            for name, mean in self.pruner.shards.local_rows(state["momenta"]).items()
        }
        self.explored.load_state_dict(state["explored"], parameters)

    def _begin(self, trainer: pl.Trainer) -> None:
        super()._begin(trainer)
        assert self._clock is not None
        if self.initializer is original and not self.pruner.state.originals:
            self.pruner.remember_original()  # masks may be there already, or be made by hand
        progress = self.progress
        timeline = self._clock.timeline(progress.first, progress.epoch)
        if not self.moves or timeline.total == 0 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self._complete:  # masks of an earlier fit go on moving, where others would rest
            progress.start = self.final
        progress.plan = self.resolve(timeline, progress.start)
        self._end = self.updates.stop(timeline)

    def _resume(self, state: Mapping[str, Any]) -> None:
        super()._resume(state)
        if self.on_change != "stretch" or not self.moves or self.progress.reached:
            return
        assert self._clock is not None
        progress, (now, _) = self.progress, self._clock.start_step()
        timeline = self._clock.timeline(progress.first, progress.epoch)
        planned = self.resolve(timeline, progress.start)
        ahead = tuple(milestone for milestone in planned if milestone.step >= now)
        progress.plan = progress.plan[: progress.n_done] + ahead
        self._end = self.updates.stop(timeline)

    def _act(self, due: Milestone) -> None:
        pruner, first = self.pruner, self.progress.first
        if not pruner.pruned:
            if self.initializer is original:
                pruner.remember_original()
            self._change(lambda optimizers: draw_masks(pruner, self.final, optimizers))
        elif not self._complete:  # it was less sparse before the fit, or made so by hand
            self._change(lambda optimizers: pruner.prune_to(self.final, optimizers))
        else:
            share = drop_fraction_at(due.step - first, self._end - first, self.drop_fraction)
            self._change(
                lambda optimizers: drop_and_grow(
                    pruner,
                    share,
                    drop=pruner.criterion,
                    grow=self.grow,
                    init=self.initializer,
                    optimizers=optimizers,
                )
            )
            self._skips = self.skip_update

    def _change(self, change: Callable[[list[Optimizer]], HistoryEntry]) -> HistoryEntry:
        def watched(optimizers: list[Optimizer]) -> HistoryEntry:
            entry = change(optimizers)
            entry["explored"] = self.explored.add(self.pruner.masks)
            return entry

        return super()._change(watched)
