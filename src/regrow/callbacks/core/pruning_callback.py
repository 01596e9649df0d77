# SPDX-License-Identifier: MIT
"""PruningCallback: runs a session from Lightning's hooks.

Events happen in `on_train_batch_start`, so an epoch's validation and checkpoint see the same
weights; events that need gradients in `on_before_optimizer_step`. Weights are masked after each
optimizer step by a hook of the optimizer: Lightning runs forward and backward inside
`optimizer.step`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from regrow.callbacks.core.averaging import Averages
from regrow.callbacks.core.base import Callback, PruneEvent, waits_for_gradients
from regrow.callbacks.core.checkpoint_files import (
    check_format,
    check_masked_state,
    require_state,
    restore_loaders,
)
from regrow.callbacks.core.checks import check_pruner_fits, check_results_return, check_same_package
from regrow.callbacks.core.clock import Clock
from regrow.callbacks.core.compatibility import FREEZING, check_combination
from regrow.callbacks.core.dispatch import (
    SuiteEvents,
    add_children,
    callbacks_overriding,
    suite_callbacks,
)
from regrow.callbacks.core.gradients import amp_step_skipped, unscaled_gradients
from regrow.callbacks.core.mask_guard import MaskGuard
from regrow.callbacks.core.session import FORMAT, P, PruningSession, PruningStrategy
from regrow.callbacks.core.summary import (
    print_summary,
    report_moved_events,
    warn_ended_early,
    warn_may_end_early,
    warn_of_zeros,
)
from regrow.callbacks.core.weight_use import watch_weight_use
from regrow.channels.config import ChannelConfig
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.criteria.base import TrackingCriterion
from regrow.io.checkpoints import read_checkpoint
from regrow.io.sharded_checkpoints import file_of, load_shards, move_shards, saves_shards
from regrow.masks.masks import Masks
from regrow.pruning.base import BasePruner
from regrow.pruning.config import PruningConfig
from regrow.pruning.freezing import TrainSpec
from regrow.pruning.growth import GrowthCriterion
from regrow.pruning.initializers import Initializer
from regrow.pruning.state import HistoryEntry
from regrow.pruning.transaction import Transaction
from regrow.schedules.base import PruningPlan, Schedule
from regrow.schedules.progress import Progress
from regrow.schedules.time import Timeline
from regrow.utils.errors import StateError
from regrow.utils.lightning_classes import pl
from regrow.utils.modes import no_compile
from regrow.utils.names import accept_compile_prefix, named_parameters
from regrow.utils.optimizers import find_optimizers, trained_parameters


class PruningCallback(Callback, Generic[P]):
    """Prune one model by a schedule and keep its masks applied.

    Args:
        strategy: What happens at an event.
        schedule: When events happen.
        final: The sparsity at which the schedule ends.
        on_change: What a resume does if the remaining events would now be at other steps.
        children: Callbacks that are added to the Trainer with this one.
    """

    priority = 2  # after budgets and regrowth
    _guard: MaskGuard | None = None  # from setup on; without a Trainer there is none

    def __init__(
        self,
        strategy: PruningStrategy[P],
        schedule: Schedule,
        final: float,
        on_change: str = "refuse",
        children: tuple[Callback, ...] = (),
    ) -> None:
        super().__init__()
        self.config: PruningConfig | ChannelConfig = strategy.config
        self.schedule = schedule
        self.keep_removed, self.soft = strategy.keep_removed, strategy.soft
        self.constant_sparsity = strategy.constant_sparsity
        self.learns_masks = strategy.learns_masks
        self.uses_threshold = strategy.unit == "threshold"
        criterion = self.config.criterion
        self.tracks_gradients = criterion == "movement" or isinstance(criterion, TrackingCriterion)
        self.children = children
        self.session = PruningSession(strategy, schedule, final, on_change, self.state_key)
        self._loaded: Mapping[str, Any] | None = None  # a state that training has not resumed yet
        self._evaluates = False  # whether checkpoints are loaded to validate, test or predict
        self._saves_shards = False  # whether checkpoints are sharded
        self._module_hooks: list[RemovableHandle] = []
        self._batch_start: Sequence[Callback] = ()
        self._epoch_start: Sequence[Callback] = ()
        self._starting: Sequence[Callback] = ()  # those that are called at the next batch
        self._gradients: Sequence[Callback] = ()
        self._masks_early = False

    @cached_property
    def state_key(self) -> str:  # Lightning reads it around every hook, so computed once
        return self._generate_state_key(include=self.config.include, exclude=self.config.exclude)

    @property
    def pruner(self) -> P:
        """The pruner; it exists once a fit has begun or a model was attached."""
        return self.session.pruner

    @property
    def progress(self) -> Progress:
        """The plan of the present fit and how much of it has happened."""
        return self.session.progress

    @property
    def final(self) -> float:
        """The sparsity at which the schedule ends."""
        return self.session.final

    @property
    def masks(self) -> Masks:
        """The masks by parameter name."""
        return self.pruner.masks

    @property
    def sparsity(self) -> float:
        """The masked fraction of the prunable weights."""
        session = self.session
        return 0.0 if session.current is None else session.strategy.sparsity(session.current)

    @property
    def densities(self) -> dict[str, float]:
        """The kept fraction of each parameter."""
        return self.session.strategy.densities(self.pruner)

    @property
    def target(self) -> float:
        """The sparsity last asked for."""
        return 0.0 if self.session.current is None else self.session.current.target

    @property
    def history(self) -> list[HistoryEntry]:
        """One entry per event."""
        return [] if self.session.current is None else self.session.current.history

    @property
    def changes_between_events(self) -> bool:
        """Whether the sparsity also changes between events."""
        session = self.session
        return session.current is not None and session.strategy.is_changing(session.current)

    @property
    def keeps_dense_copy(self) -> bool:
        return self.soft

    @property
    def schedule_done(self) -> bool:
        """Whether all planned events have happened, and nothing was regrown since."""
        return self.session.strategy.schedule_done(self.session)

    @property
    def at_target(self) -> bool:
        """Whether no event that prunes is left; a plan may end dense after that."""
        return self.session.strategy.at_target(self.session)

    def resolve(self, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        """The milestones of a fit with this timeline, without a Trainer."""
        return self.session.resolve(timeline, start)

    def prune_to(self, sparsity: float) -> HistoryEntry:
        """Prune now, outside of the schedule; see `Pruner.prune_to`."""
        return self.session.change(lambda optimizers: self.pruner.prune_to(sparsity, optimizers))

    def unprune(self, names: Iterable[str] | str | None = None) -> HistoryEntry:
        """Restore removed values bit-exactly; see `Pruner.unprune`. Later events prune again."""
        return self.session.change(lambda optimizers: self.pruner.unprune(names, optimizers))

    def regrow(
        self,
        fraction: float | None = None,
        count: int | None = None,
        *,
        by: str | GrowthCriterion = "random",
        init: str | Initializer = "he",
        names: Iterable[str] | str | None = None,
        train: TrainSpec = "all",
    ) -> HistoryEntry:
        """Bring pruned weights back with new values; see `Pruner.regrow`."""
        if self.session.clock is not None and train != "all":
            check_combination(self.session.clock.trainer, (FREEZING,))
        given: dict[str, Any] = {"by": by, "init": init, "names": names, "train": train}
        return self.session.change(
            lambda optimizers: self.pruner.regrow(fraction, count, **given, optimizers=optimizers)
        )

    def attach(self, model: nn.Module, ckpt: str | Path | None = None) -> None:
        """Use a model outside a fit.

        Args:
            model: The module.
            ckpt: A Lightning checkpoint whose masks are loaded, but not its weights, a file or the
                folder of a sharded one; None: the present masks are applied, if there are any.

        Raises:
            StateError: If the checkpoint has no masks of this callback that match the model.
        """
        state: Mapping[str, Any] | None = None
        of_children = dict[Callback, Any]()
        if ckpt is not None:
            checkpoint = read_checkpoint(file_of(ckpt))
            check_masked_state(checkpoint, self.state_key, None)
            load_shards(checkpoint, self.state_key, ckpt, named_parameters(model))
            state = self._require_state(checkpoint)
            if state["pruner"] is None:
                raise StateError(f"{ckpt} was saved before {self.state_key} had seen a model")
            saved = {child: checkpoint["callbacks"].get(child.state_key) for child in self.children}
            of_children = {c: s for c, s in saved.items() if s and c.loads_when_attached}
        elif self.session.current is not None:
            if self.session.current.state.shards.ranks is not None:
                raise StateError(
                    "masks of sharded parameters can only be carried over by a checkpoint: save "
                    "one, and call attach(model, ckpt)"
                )
            state = self.state_dict()
        self.session.attach(model, state)
        for child, content in of_children.items():
            child.load_state_dict(content)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_same_package(trainer)
        add_children(trainer, self)
        self._loaded, self._evaluates, self.session.transaction = None, False, Transaction()
        self._guard = MaskGuard(self.session, trainer, pl_module)
        self._saves_shards = saves_shards(trainer.strategy)
        self._module_hooks.append(accept_compile_prefix(pl_module))
        if stage == "fit":  # another fit, another plan
            check_results_return(trainer, self)
            self.session.progress = Progress()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        session, self._evaluates = self.session, trainer.state.fn != "fit"
        check_masked_state(checkpoint, self.state_key, trainer.ckpt_path)
        named = named_parameters(pl_module)
        state = load_shards(checkpoint, self.state_key, trainer.ckpt_path, named)
        if not self._evaluates:
            then = self._require_state(checkpoint)["children"]
            now = [type(child).__name__ for child in self.children]
            if then != now:
                raise StateError(
                    f"the checkpoint was trained {_format_children(then)}, this callback is "
                    f"{_format_children(now)}: write the same rewind= and refit="
                )
            return
        current = session.current
        if state and state["pruner"] is not None:  # masks of the weights to be evaluated
            if current is None or current.model is not pl_module:
                session.current = session.strategy.make_pruner(pl_module)
            self.pruner.load_state_dict(state["pruner"])
        elif current is not None and current.model is pl_module:
            rank_zero_warn(
                f"the checkpoint has no masks of {self.state_key}, so the model is dense now: its "
                "previous masks are discarded"
            )
            session.current = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_combination(trainer)
        session = self.session
        session.current = session.current or session.strategy.make_pruner(pl_module)
        check_combination(trainer)  # again, because some rows compare pruners
        check_pruner_fits(trainer, pl_module, session.current)
        session.start(
            Clock(trainer, session.schedule.times()),
            optimizers_of(trainer, session.current),
            averages=Averages(trainer),
            events=SuiteEvents(trainer, self),
            manual=not pl_module.automatic_optimization,  # raw optimizers call no Lightning hook
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        restore_loaders(trainer)
        # Not earlier: the optimizers' state is restored only now.
        state, session = self._loaded, self.session
        if state is not None and state["progress"] is not None:
            session.resume(state)
        else:
            if state is not None and state["pruner"] is not None:
                session.load(state)
            session.begin()
        self._loaded = None  # not before: a failed resume must not be saved in its place
        self.pruner.enforce(session.optimizers)
        self._find_listeners(trainer, pl_module)
        self._module_hooks += watch_weight_use(pl_module, self.pruner.targets)
        print_summary(trainer, session, type(self).__name__)
        warn_may_end_early(trainer, session)
        if (every := [c.session for c in pruning_callbacks(trainer)])[-1] is session:
            warn_of_zeros(every)  # now all have their masks

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._starting = self._epoch_start

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._starting:  # only now, because hooks of the epoch's start may change accumulation
            starting, self._starting = self._starting, ()
            for callback in starting:
                callback.on_suite_epoch_start(trainer, pl_module)
        for callback in self._batch_start:
            callback.on_suite_batch_start(trainer, pl_module, batch, batch_idx)

    def on_suite_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.session.begin_epoch()
        before = self.progress.remaining
        if not self.progress.adaptive and self.session.replan():
            report_moved_events(self.session, before)

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        session = self.session
        pruner = session.current
        if pruner and pruner.state.enforcer.masked and pruner.state.enforcer.is_sample_live():
            self._check(f"as batch {batch_idx} began")
        # as session.step(), with one call less at every batch
        if (due := session.due()) is None or session.strategy.acts_on_gradients(session.pruner):
            return
        self._check("at a pruning event")
        session.fire(due)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._masks_early:
            self.pruner.enforcer.gradients()

    def on_dense_gradients(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        if not amp_step_skipped(trainer, optimizer):
            self.session.on_gradients(optimizer)

    @no_compile
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if self._gradients:  # all see dense gradients, once, before any callback masks them
            with unscaled_gradients(trainer, optimizer):
                for callback in self._gradients:
                    callback.on_dense_gradients(trainer, optimizer)
        session = self.session
        if session.transaction.failed is not None:
            session.transaction.check()
        # no hook follows a skipped step, so soft pruning's dense values would stay
        if session.current and not (self.soft and amp_step_skipped(trainer, optimizer)):
            session.current.enforcer.prepare()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        pruner = self.session.current
        if pruner and (self.soft or self.learns_masks or pruner.state.freezer.free is not None):
            # a scaler that skips the step runs no hook after it
            self.session.strategy.flush_dense(pruner)

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        if event.pruner is not self:
            self.session.on_other_event()

    def on_compact(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: ChannelCut
    ) -> None:
        self.session.resize(plan)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mask_averages()  # an average replaces the weights as the epoch starts

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:  # not before: hooks of the module or others may write until here
            self._check("as evaluation began")

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._mask_averages()  # in place: the checkpoint may hold its tensors already
        self._check("in a checkpoint")
        move_shards(checkpoint, self.state_key)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.session.mask_averages()
        if self.session.averages.copies:
            self.pruner.enforcer.weights()  # the average may have gone into the module already
        self._check("at the end of training")
        warn_ended_early(trainer, self.session)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state, self._loaded = self._loaded, None
        if state is not None and state["pruner"] is not None:  # nothing was left to train
            self.session.load(state)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.session.stop()
        for handle in self._module_hooks:
            handle.remove()
        self._module_hooks.clear()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if self.session.current is not None and self._loaded is None:
            self.session.strategy.flush_dense(self.session.current)
            self.session.current.enforcer.weights()  # the step may have been interrupted
            warn_ended_early(trainer, self.session, exception)
        super().on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        if self._loaded is not None:  # not resumed yet, as within a learning-rate finder
            return dict(self._loaded)
        children = [type(child).__name__ for child in self.children]
        current = self.session.current
        sharded = current is not None and self._saves_shards
        with current.state.shards.keep_sharded() if current and sharded else nullcontext():
            return {**self.session.state_dict(), "children": children}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_format(state_dict, FORMAT, self.state_key)
        if not self._evaluates:  # else on_load_checkpoint has loaded it
            self._loaded = state_dict

    def _require_state(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
        return require_state(checkpoint, self.state_key)

    def _find_listeners(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the callbacks with hooks at each step; the first pruning callback calls them."""
        gradients = [
            callback
            for callback in callbacks_overriding(trainer, "on_dense_gradients")
            if not isinstance(callback, PruningCallback) or waits_for_gradients(callback.pruner)
        ]
        if next(c for c in suite_callbacks(trainer) if isinstance(c, PruningCallback)) is self:
            self._batch_start = callbacks_overriding(trainer, "on_suite_batch_start")
            self._epoch_start = callbacks_overriding(trainer, "on_suite_epoch_start")
            self._gradients = gradients
        else:
            self._batch_start = self._epoch_start = self._gradients = ()
        self._starting = self._epoch_start  # Lightning may resume an epoch without its hook
        # Under manual optimisation a module clips by itself, before any hook of the step. Where
        # callbacks read gradients these stay dense until then, and the norm counts all of them.
        self._masks_early = not (pl_module.automatic_optimization or gradients)

    def _check(self, when: str) -> None:
        if self._guard is not None and self._loaded is None:  # else weights await their masks
            self._guard.check(when)

    def _mask_averages(self) -> None:
        if self._loaded is None:
            self.session.mask_averages()


def _format_children(names: Sequence[str]) -> str:
    return f"with {' and '.join(names)}" if names else "without rewind= and refit="


def optimizers_of(trainer: pl.Trainer, pruner: BasePruner) -> list[Optimizer]:
    """The optimizers of a fit, those they hold, and those of the module that train its targets."""
    pruned = {id(target.parameter) for target in pruner.targets}
    held = [
        optimizer
        for optimizer in find_optimizers(*vars(trainer.lightning_module).values())
        if pruned & trained_parameters(optimizer)
    ]
    return find_optimizers(*trainer.optimizers, *held)


def pruning_callbacks(trainer: pl.Trainer) -> list[PruningCallback]:
    """The pruning callbacks of a Trainer, in its order."""
    return [c for c in trainer.callbacks if isinstance(c, PruningCallback)]  # type: ignore[attr-defined]
