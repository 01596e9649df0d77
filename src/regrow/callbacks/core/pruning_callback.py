# SPDX-License-Identifier: MIT
"""PruningCallback: Lightning hooks only.

Events fire in `on_train_batch_start`, so that an epoch's validation and its checkpoint see the
same weights; those that need gradients in `on_before_optimizer_step`. Weights are masked in a hook
after each optimizer step: Lightning runs forward and backward inside `optimizer.step`, so a hook
before it would see no gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from regrow.callbacks.core.averaging import Averages
from regrow.callbacks.core.base import Callback, PruneEvent
from regrow.callbacks.core.checkpoint_files import check_format
from regrow.callbacks.core.checks import (
    check_pruner_fits,
    ranks_now,
    waits_for_gradients,
    warn_unfinished,
)
from regrow.callbacks.core.clock import Clock
from regrow.callbacks.core.compatibility import check_target_reachable
from regrow.callbacks.core.dispatch import ordered, suite
from regrow.callbacks.core.gradients import amp_step_skipped, before_step, show_gradients
from regrow.callbacks.core.pruner_types import as_sparse
from regrow.callbacks.core.session import PrunerAccess
from regrow.callbacks.core.summary import print_summary
from regrow.channels.config import ChannelConfig
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.pruning.config import PruningConfig
from regrow.pruning.state import KeepRemoved
from regrow.pruning.transaction import Transaction
from regrow.schedules.base import Milestone, PruningPlan, Schedule, layer_sparsities
from regrow.schedules.progress import Progress
from regrow.schedules.time import Timeline
from regrow.utils.errors import StateError, check_choice
from regrow.utils.modes import no_compile
from regrow.utils.names import accept_compile_prefix


class MaskedAverages(PrunerAccess):
    """Masks what EMA and SWA average: at validation, in checkpoints, in the final model.

    Masks change at events, and averages follow there; here only what an averaging rule of a user's
    own made of two zeros is made zero again.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._averages = Averages(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mask_averages()  # it takes the module's place when the epoch starts

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._mask_averages()  # in place: the checkpoint may hold its tensors already

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mask_averages()
        self.pruner.enforcer.weights()  # the average may have gone into the module already

    def _mask_averages(self) -> None:
        if self._pruner is not None:
            self._averages.mask(self._pruner.enforcer)


class MaskedBackward(PrunerAccess):
    """Masks gradients as soon as `manual_backward` has made them.

    Under manual optimisation a module clips by itself, before any hook of the step: a norm would
    count pruned weights too. Where a callback looks at gradients (a criterion, growth) they stay
    dense until the step, and that norm counts all of them.
    """

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not pl_module.automatic_optimization and not any(map(_looks, suite(trainer))):
            self.pruner.enforcer.gradients()


def _looks(callback: Callback) -> bool:
    """Whether a callback of the suite asks for dense gradients."""
    if isinstance(callback, PrunerAccess) and waits_for_gradients(callback.pruner):
        return True
    return type(callback).on_dense_gradients is not Callback.on_dense_gradients


class TakesTurns(PrunerAccess):
    """The first pruning callback of the list lets all of the suite take their turns."""

    priority = 2  # after budgets and regrowth
    _turns: Sequence[Callback] = ()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if leads(trainer, self):
            for callback in self._turns:
                callback.on_suite_batch_start(trainer, pl_module, batch, batch_idx)


def leads(trainer: pl.Trainer, callback: Callback) -> bool:
    """Whether a callback is the first pruning callback of the Trainer's list."""
    first = next(c for c in trainer.callbacks if isinstance(c, TakesTurns))  # type: ignore[attr-defined]
    return first is callback


FORMAT = 2


class PruningCallback(TakesTurns, MaskedBackward, MaskedAverages):
    """Owns masks of one model, changes them by a plan and enforces them.

    Args:
        method: How to rank and group.
        schedule: When to prune.
        final: The sparsity at which the schedule ends.
        keep_removed: Whether removed values go to the vault.
        on_change: What a resume does where the remaining events would now lie elsewhere.
        soft: Whether dense values go on learning beneath the masks.
    """

    def __init__(
        self,
        method: PruningConfig | ChannelConfig,
        schedule: Schedule,
        final: float,
        keep_removed: KeepRemoved,
        on_change: str,
        soft: bool = False,
    ) -> None:
        super().__init__(method, keep_removed, soft)
        self.schedule = schedule
        self.final = final
        self.on_change = check_choice("on_change", on_change, ("refuse", "keep", "stretch"))
        self._loaded: Mapping[str, Any] | None = None
        self._outside = False
        self._handles: list[RemovableHandle] = []
        self._pruners: list[PruningCallback] = []
        self._eager: list[Callback] = []

    def resolve(self, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        """The milestones of a fit with this timeline, without a Trainer."""
        if start >= self.final > 0:
            return ()
        plan = self.schedule.plan(self.final, timeline, start)
        return tuple(Milestone(int(step), float(sparsity)) for step, sparsity in plan)

    @property
    def reached(self) -> bool:
        """Whether all planned events have happened, and nothing was brought back since."""
        return super().reached and self._holds(self.progress.plan)

    @property
    def at_target(self) -> bool:
        """Whether nothing is left to prune; a plan may end dense, after that."""
        return self.progress.started and self.progress.pruned and self._holds(self.progress.sparse)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        pruner = self._pruner = self._pruner or self._new_pruner(pl_module)
        check_pruner_fits(trainer, pl_module, pruner)
        self._clock = Clock(trainer, self.schedule.times())
        for optimizer in trainer.optimizers:
            self._handles.append(pruner.enforcer.hook(optimizer))
            if not pl_module.automatic_optimization:  # a raw optimizer.step() calls no other hook
                self._handles.append(pruner.enforcer.gradient_hook(optimizer))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Only now the optimizers' state is back, and asking for the fit's length any earlier would
        # make Lightning forget where a stateful loader stood.
        state = self._loaded
        if state is not None and state["progress"] is not None:
            self._resume(state)
        else:
            if state is not None and state["pruner"] is not None:
                self._adopt(state)
            self._begin(trainer)
        self._loaded = None  # not before: what fails to resume must not be saved in its place
        self.pruner.enforce(trainer.optimizers)
        self._turns, idle = ordered(trainer), Callback.on_dense_gradients  # once: steps are many
        self._pruners = [c for c in self._turns if isinstance(c, PruningCallback)]
        self._eager = [c for c in self._turns if type(c).on_dense_gradients is not idle]
        print_summary(trainer, self)

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (due := self._due()) is not None and not waits_for_gradients(self.pruner):
            self._fire(due)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self.pruner.flush_dense()  # a scaler that skips the step runs no hook after it

    @no_compile
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if leads(trainer, self):  # all see the gradients, once, before any masks them
            show_gradients(trainer, optimizer, self._eager, self._pruners)
        self.transaction.check()
        before_step(trainer, optimizer, self.pruner)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        warn_unfinished(trainer, self)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state, self._loaded = self._loaded, None
        if state is not None and state["pruner"] is not None:  # nothing was left to train
            self._adopt(state)

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        if event.pruner is not self and self._pruner is not None:
            # it may have brought back what is masked here; gradients stay dense until all saw them
            self._pruner.enforcer.weights()
            self._pruner.enforcer.state(trainer.optimizers)
            self._averages.mask(self._pruner.enforcer)

    def on_compact(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: ChannelCut
    ) -> None:
        if self._pruner is not None:
            planned = [self.final, *(sparsity for _, sparsity in self.progress.plan)]
            held = [s for s in planned if as_sparse(self._pruner, s, self.final)]
            self._pruner.resize(plan.slice)
            self._pruner.state.sparsity_before_cut = max(held, default=0.0)

    def on_gradients(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Acts on dense, unscaled, unclipped gradients: a due event, or the criterion's update."""
        pruner = self.pruner
        if not waits_for_gradients(pruner) or amp_step_skipped(trainer, optimizer):
            return
        pruner.update(optimizer)
        if (due := self._due()) is not None and ranks_now(trainer, pruner, optimizer):
            self._fire(due)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._loaded, self._outside, self.transaction = None, False, Transaction()
        self._handles.append(accept_compile_prefix(pl_module))
        if stage == "fit":  # another fit, another plan
            self.progress = Progress()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._outside = trainer.state.fn != TrainerFn.FITTING
        state = self._whole_state(checkpoint, trainer.ckpt_path)
        if not self._outside:
            self._own_state(checkpoint)
            return
        if state and state["pruner"] is not None:  # weights of another moment, to be tested
            if self._pruner is None or self._pruner.model is not pl_module:
                self._pruner = self._new_pruner(pl_module)
            self._pruner.load_state_dict(state["pruner"])
        elif self._pruner is not None and self._pruner.model is pl_module:
            rank_zero_warn(
                f"the checkpoint has no masks of {self.state_key}, so the model is dense now and "
                "the masks it had are given up"
            )
            self._pruner = None

    def state_dict(self) -> dict[str, Any]:
        if self._loaded is not None:  # not taken in yet, as when a learning rate is looked for
            return dict(self._loaded)
        self.transaction.check()
        return {
            "format": FORMAT,
            "final": self.final,
            "method": self.method.to_dict(),
            "pruner": None if self._pruner is None else self._pruner.state_dict(),
            "progress": self.progress.state_dict() if self.progress.started else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_format(state_dict, FORMAT, self.state_key)
        if not self._outside:  # else on_load_checkpoint took it in
            self._loaded = state_dict

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if self._pruner is not None:
            self._pruner.flush_dense()
            self._pruner.enforcer.weights()  # a step that was stopped before its end
        self._release()

    def _begin(self, trainer: pl.Trainer) -> None:
        """Plans a fit that is not a resumed one; it goes on from the sparsity the model has."""
        assert self._clock is not None
        pruner, (first, epoch) = self.pruner, self._clock.start_step()
        timeline, start = (
            self._clock.timeline(first, epoch),
            self.pruner.progress_towards(self.final),
        )
        check_target_reachable(trainer, pruner, start, self.final)
        there = self.final > 0 and pruner.units(start) == pruner.units(self.final)
        if there or timeline.total == 0:
            plan: PruningPlan = ()
        elif trainer.fast_dev_run:  # type: ignore[attr-defined]
            plan = (Milestone(first, self.final),)
        else:
            plan = self.resolve(timeline, start)
        if plan:
            pruner.check_reachable(max(milestone.sparsity for milestone in plan))
        self.progress = Progress(plan, 0, start, first, epoch)

    def _resume(self, state: Mapping[str, Any]) -> None:
        """Takes masks, plan and place in the plan from a checkpoint."""
        assert self._clock is not None
        if state["final"] != self.final:
            raise StateError(
                f"the checkpoint was pruned towards sparsity {state['final']:g}, this callback "
                f"towards {self.final:g}: to change the target, load the weights and start a fit"
            )
        self.method.check_matches(state["method"])
        self._adopt(state)
        now, _ = self._clock.start_step()
        timeline = self._clock.timeline(self.progress.first, self.progress.epoch)
        self.progress.resume(self.resolve, timeline, now, self.on_change)

    def _due(self) -> Milestone | None:
        if self._clock is None or self.progress.reached:
            return None
        return self.progress.due(self._clock.current_step())

    def _fire(self, due: Milestone) -> None:
        """Acts on a due event, unless somebody lets it wait."""
        assert self._clock is not None
        trainer = self._clock.trainer
        listeners = suite(trainer)
        if not all(callback.allows_event(trainer, self) for callback in listeners):
            return
        for callback in listeners:
            callback.before_prune_event(trainer, trainer.lightning_module, self)
        with self.transaction.guard(f"the event at step {due.step}"):
            self._act(due)
            self.progress.mark_done(due)

    def _act(self, due: Milestone) -> None:
        pruner = self.pruner
        # a prune_to by hand may have gone further than the plan
        if due.sparsity and pruner.units(due.sparsity) < pruner.units(
            pruner.progress_towards(self.final)
        ):
            return
        own = layer_sparsities(
            self.schedule, due.sparsity, self.final, pruner.layer_targets, pruner.densities
        )
        self._change(lambda opt: pruner.prune_to(due.sparsity, opt, own))

    def _holds(self, planned: Sequence[Milestone]) -> bool:
        """Whether the model is as sparse as the last of these milestones, or as the target."""
        last = planned[-1].sparsity if planned else self.final
        return self._pruner is not None and as_sparse(self._pruner, last, self.final)

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._clock = None


def pruning_callbacks(trainer: pl.Trainer) -> list[PruningCallback]:
    """The callbacks with a plan."""
    return [c for c in trainer.callbacks if isinstance(c, PruningCallback)]  # type: ignore[attr-defined]
