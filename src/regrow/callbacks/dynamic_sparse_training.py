# SPDX-License-Identifier: MIT
"""DynamicSparseTraining: sparse training whose masks move (RigL, SET, SNFS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.callbacks.core.gradients import drop_gradients
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.session import GradualMagnitude, PruningSession
from regrow.criteria.base import CRITERIA, TrackingCriterion
from regrow.masks.distributions import DISTRIBUTIONS, LayerSize
from regrow.masks.masks import PackedMasks
from regrow.pruning.config import PruningConfig
from regrow.pruning.drop_and_grow import (
    GROW,
    ExploredMask,
    draw_masks,
    drop_and_grow,
    update_gradient_momentum,
)
from regrow.pruning.growth import (
    GrowthCriterion,
    check_supports_sharding,
    get_growth_criterion,
)
from regrow.pruning.initializers import (
    Initializer,
    check_makes_single_weights,
    make_initializer,
    original,
    removed_values,
)
from regrow.pruning.migration import answer_other_arguments
from regrow.pruning.pruner import Pruner
from regrow.pruning.state import HistoryEntry
from regrow.schedules.base import Milestone, PruningPlan
from regrow.schedules.drop_fraction import DropGrowSchedule, drop_fraction_at
from regrow.schedules.one_shot import OneShot
from regrow.schedules.time import TimeLike, Timeline
from regrow.utils.errors import ConfigError, check_bool, check_choice, check_rate
from regrow.utils.lightning_classes import lightning_classes, pl
from regrow.utils.modes import no_compile


class DynamicSparseTraining(PruningCallback[Pruner]):
    """Train a sparse network whose masks move: RigL, SET, SNFS, or static masks.

    Masks are drawn at random at the first step. Then, every `every` before `end`, each layer drops
    its lowest-scored weights and grows as many elsewhere; the fraction follows a cosine to 0. The
    number of kept weights of a layer never changes. Growth by gradient or momentum happens within
    the optimizer step, on dense gradients; random growth before the batch.

    `SparsityMonitor` logs `pruning/overlap` (masks before and after the last update) and
    `pruning/explored` (fraction of weights that were ever kept).

    Args:
        sparsity: Fraction of the selected weights that is masked from the start, in [0, 1).
        drop: Which weights are dropped: a criterion or its name, see `MagnitudePruning`.
        grow: Which weights grow: "gradient" (RigL), "random" (SET), "momentum" (SNFS), "none"
            (static masks) or a `regrow.pruning.growth.GrowthCriterion`.
        distribution: "erk" or "uniform".
        init: Values of grown weights; as in `Regrow`.
        drop_fraction: Fraction of a layer's kept weights that the first update drops, in (0, 1).
        every: Time between updates: "100it", "1ep", or a fraction of the fit.
        end: Time from which masks stay as they are: the drop fraction has fallen to 0 there, so the
            last update comes before it.
        include: Patterns of parameters or modules to prune; None: the weights of convolutions,
            Linear and recurrent layers and attention.
        exclude: Patterns to leave dense; "@first", "@last", "@depthwise" name layers.
        granularity: "weight"; static masks may also be "2:4" (any "n:m"), "block:4x4" or
            "head" (of attention).
        on_misfit: As in `MagnitudePruning`.
        seed: Seed of the first masks, growth and initializers.
        skip_update: Whether the step whose gradients grew weights skips its optimizer update, as
            in the paper of RigL.
        keep_removed: Whether removed values are stored, for `unprune` and `init="removed"`.
        from_zeros: Whether the weights that are exactly zero when the fit starts are the first
            masks, in place of random ones.
        on_change: What to do on resume if the remaining updates have moved; see
            `MagnitudePruning`.

    Raises:
        ConfigError: For invalid settings, at construction where possible, else before the first
            step; for frozen layers whose masks would move.
        StateError: For models and checkpoints that do not match.

    Source: Evci et al. 2020 (RigL); Mocanu et al. 2018 (SET); Dettmers and Zettlemoyer 2019 (SNFS).

    Example:
        >>> DynamicSparseTraining(0.9, grow="gradients")
        Traceback (most recent call last):
            ...
        regrow.ConfigError: grow must be one of gradient, momentum, none, random, got \
'gradients': write 'gradient'
    """

    @answer_other_arguments
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
        on_misfit: str = "raise",
        seed: int = 0,
        skip_update: bool = False,
        keep_removed: bool = False,
        from_zeros: bool = False,
        on_change: str = "refuse",
    ) -> None:
        if isinstance(drop, str):
            check_choice("drop", drop, CRITERIA)
        if isinstance(grow, str) or not callable(grow):
            check_choice("grow", grow, (*GROW, "none"))
        check_choice("distribution", distribution, ("erk", "uniform"))
        initializer, moves = make_initializer(init), grow != "none"
        check_rate("drop_fraction", drop_fraction)
        check_bool("skip_update", skip_update)
        check_bool("keep_removed", keep_removed)
        _check_growth(grow, initializer, granularity, skip_update, keep_removed)
        config = PruningConfig(
            drop, distribution, granularity, None, include, exclude, seed, on_misfit
        )
        final = config.check_target(sparsity)
        updates = DropGrowSchedule(every, end)
        strategy = DropGrow(
            config,
            keep_removed,
            from_zeros=from_zeros,
            updates=updates,
            grow=grow,
            initializer=initializer,
            drop_fraction=drop_fraction,
            skip_update=skip_update,
        )
        super().__init__(strategy, updates if moves else OneShot(0), final, on_change)
        self.strategy = strategy

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        finetuning = lightning_classes("callbacks.BaseFinetuning")
        # such a callback may unfreeze layers before they grow
        if not any(isinstance(callback, finetuning) for callback in callbacks):
            self.strategy.check_not_frozen(self.session)

    @no_compile
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.strategy.skips:  # only now, when every pruner has seen the gradients
            drop_gradients(trainer, optimizer)
        self.strategy.skips = False


def _check_growth(
    grow: str | GrowthCriterion,
    init: Initializer,
    granularity: str,
    skip_update: bool,
    keep_removed: bool,
) -> None:
    """Raise `ConfigError` for settings that exclude one another."""
    if grow != "none" and granularity != "weight":
        raise ConfigError(
            f"granularity={granularity!r} cannot be grown, only single weights can: write "
            "granularity='weight', or grow='none' for masks that do not change"
        )
    if skip_update and grow in ("random", "none"):
        raise ConfigError(
            f"skip_update=True skips the step whose gradients grow weights, grow={grow!r} "
            "looks at none: leave skip_update out, or write grow='gradient'"
        )
    check_makes_single_weights(init)
    if init is removed_values and not keep_removed:
        raise ConfigError("init='removed' needs the removed values: write keep_removed=True")


class DropGrowStateDict(TypedDict):
    """State of `DropGrow`."""

    end: int  # the step from which masks stay as they are
    momenta: dict[str, Tensor]  # running means of dense gradients, by parameter name
    explored: PackedMasks  # True where a weight was kept at some time


@dataclass(eq=False, kw_only=True)
class DropGrow(GradualMagnitude):
    """Draws masks at the first step, then drops weights and grows as many at each update."""

    constant_sparsity = True
    updates: DropGrowSchedule
    grow: str | GrowthCriterion
    initializer: Initializer
    drop_fraction: float
    skip_update: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.moves = self.grow != "none"
        self.explored = ExploredMask()
        self.end = 0  # the step from which masks stay as they are
        self.skips = False  # whether the present step trains nothing

    def make_pruner(self, model: nn.Module) -> Pruner:
        pruner = super().make_pruner(model)
        pruner.needs_gradients |= self.grow not in ("random", "none")
        pruner.state.averages_gradients = self.grow == "momentum"
        if self.moves and pruner.state.shards.ranks is not None:
            check_supports_sharding(
                get_growth_criterion(self.grow), self.initializer, pruner.targets
            )
        return pruner

    def plan(
        self, session: PruningSession[Pruner], timeline: Timeline, start: float
    ) -> PruningPlan:
        final = session.final
        return tuple(session.schedule.plan(final, timeline, start)) if final else ()

    def apply(
        self, session: PruningSession[Pruner], due: Milestone, optimizers: list[Optimizer]
    ) -> HistoryEntry:
        pruner, first = session.pruner, session.progress.first
        if not pruner.pruned:
            if self.initializer is original:
                pruner.remember_original()
            return draw_masks(pruner, session.final, optimizers)
        if not session.is_as_sparse(()):  # less sparse before the fit, or made so by hand
            return pruner.prune_to(session.final, optimizers)
        share = drop_fraction_at(due.step - first, self.end - first, self.drop_fraction)
        entry = drop_and_grow(
            pruner,
            share,
            drop=pruner.criterion,
            grow=self.grow,
            init=self.initializer,
            optimizers=optimizers,
        )
        self.skips = self.skip_update
        return entry

    def check_not_frozen(self, session: PruningSession[Pruner]) -> None:
        """Check that no layer is frozen whose weights would drop, and grow without training."""
        pruner = session.pruner
        frozen = {
            target.name
            for target in pruner.targets
            if not (target.parameter.requires_grad or target.name in pruner.state.momenta)
        }
        if not (self.moves and frozen and session.progress.remaining):
            return
        pruned = pruner.state.pruned_count
        layers = [
            LayerSize(t.name, tuple(t.parameter.shape), t.parameter.numel(), pruned(t.name))
            for t in pruner.targets
        ]
        pools = DISTRIBUTIONS[self.config.distribution](layers, session.final)
        names = [layers[i].name for pool in pools for i in pool.layers if pool.pruned]
        if names := [name for name in names if name in frozen]:  # dense layers do not grow
            raise ConfigError(
                f"{', '.join(names[:3])} is frozen (requires_grad=False): it has no gradients to "
                "grow by, and what grows would not train: write "
                f"exclude={names}, or unfreeze it before the fit"
            )

    def after_change(self, pruner: Pruner, entry: HistoryEntry) -> None:
        entry["explored"] = self.explored.add(pruner.masks)

    def acts_on_gradients(self, pruner: Pruner) -> bool:
        # the masks to start from wait for nothing: no step is dense
        return bool(pruner.pruned) and super().acts_on_gradients(pruner)

    def on_gradients(self, pruner: Pruner, optimizer: Optimizer) -> None:
        if self.grow == "momentum":
            update_gradient_momentum(pruner, optimizer)
        super().on_gradients(pruner, optimizer)

    def after_plan(self, session: PruningSession[Pruner], timeline: Timeline) -> None:
        pruner, progress = session.pruner, session.progress
        if self.initializer is original and not pruner.state.originals:
            pruner.remember_original()  # masks may be there already, or be made by hand
        if not self.moves or timeline.total == 0 or session.time.dry_run:
            return
        if session.is_as_sparse(()):  # masks of an earlier fit keep moving
            progress.start = session.final
        progress.plan = session.resolve(timeline, progress.start)
        self.end = self.updates.stop(timeline)

    def after_replan(self, session: PruningSession[Pruner], timeline: Timeline) -> None:
        if self.moves:
            self.end = self.updates.stop(timeline)

    def after_resume(self, session: PruningSession[Pruner], state: Mapping[str, Any]) -> None:
        if session.on_change == "stretch" and self.moves and not session.progress.all_done:
            self.end = self.updates.stop(session.timeline)

    def after_load(self, session: PruningSession[Pruner], state: Mapping[str, Any]) -> None:
        pruner, self.end = session.pruner, int(state["end"])
        parameters = pruner.enforcer.parameters
        pruner.state.momenta = {
            name: mean.to(parameters[name].device, copy=True)
            for name, mean in pruner.state.shards.local_rows(state["momenta"]).items()
        }
        self.explored.load_state_dict(state["explored"], parameters)

    def state_dict(self, session: PruningSession[Pruner]) -> DropGrowStateDict:
        pruner = session.current
        means = {} if pruner is None else pruner.state.shards.gather(pruner.state.momenta)
        momenta = {name: mean.clone() for name, mean in means.items()}  # updated in place
        return {"end": self.end, "momenta": momenta, "explored": self.explored.state_dict()}

    def schedule_done(self, session: PruningSession[Pruner]) -> bool:
        """Whether the network has the target sparsity, which it has from the first step."""
        return session.progress.started and session.is_as_sparse(())

    def at_target(self, session: PruningSession[Pruner]) -> bool:
        return self.schedule_done(session)
