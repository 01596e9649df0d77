# SPDX-License-Identifier: MIT
"""PruningSession: pruner, schedule and progress of a callback. PruningStrategy: its events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypedDict

from torch import nn
from torch.optim import Optimizer
from typing_extensions import TypeVar

from regrow.callbacks.core.averaging import Averages
from regrow.callbacks.core.base import as_sparse, has_gradients, waits_for_gradients
from regrow.callbacks.core.checks import check_gradients_together, check_target_reachable
from regrow.callbacks.core.clock import Clock
from regrow.callbacks.core.dispatch import SuiteEvents
from regrow.channels.config import ChannelConfig
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.pruning.base import BasePruner
from regrow.pruning.config import PruningConfig, check_same_settings
from regrow.pruning.pruner import Pruner
from regrow.pruning.state import HistoryEntry, KeepRemoved, check_moments_stored
from regrow.pruning.transaction import Transaction
from regrow.schedules.base import Milestone, PruningPlan, Schedule, layer_sparsities
from regrow.schedules.iterative import Exponential
from regrow.schedules.progress import Progress
from regrow.schedules.time import Timeline
from regrow.utils.errors import RegrowError, StateError, check_bool, check_choice
from regrow.utils.optimizers import Removable, add_step_hooks

FORMAT = 4


P = TypeVar("P", bound=BasePruner, default=Any)


class SessionState(TypedDict, total=False):
    """The saved state of a pruning callback; strategies add keys of their own."""

    format: int  # version of this layout
    final: float  # sparsity at which the schedule ends
    config: dict[str, str]  # settings of `PruningConfig` or `ChannelConfig`, as text
    pruner: dict[str, Any] | None  # masks, history, removed values; None before the first fit
    progress: dict[str, Any] | None  # the plan and past events; None before the first fit
    children: list[str]  # names of the child callbacks, which save their own states


@dataclass(eq=False)
class PruningStrategy(Generic[P]):
    """The events of a pruning method; subclasses override what differs.

    Attributes:
        config: How weights or channels are ranked and grouped.
        keep_removed: Which removed values the pruner stores, for `unprune`.
        soft: Whether dense values keep training under the masks.
    """

    constant_sparsity: ClassVar[bool] = False
    learns_masks: ClassVar[bool] = False
    unit: ClassVar[str] = "sparsity"  # of milestones, for messages

    config: PruningConfig | ChannelConfig
    keep_removed: KeepRemoved
    soft: bool = False

    def __post_init__(self) -> None:
        self.config = self.config.validated()

    def make_pruner(self, model: nn.Module) -> P:
        """Create the pruner of a model."""
        raise NotImplementedError

    def plan(self, session: PruningSession[P], timeline: Timeline, start: float) -> PruningPlan:
        """The milestones of a fit that begins at sparsity `start`."""
        if start >= session.final > 0:
            return ()
        plan = session.schedule.plan(session.final, timeline, start)
        return tuple(Milestone(int(step), float(sparsity)) for step, sparsity in plan)

    def apply(
        self, session: PruningSession[P], due: Milestone, optimizers: list[Optimizer]
    ) -> HistoryEntry | None:
        """Change the masks at a due milestone; returns the history entry, None without a change."""
        pruner, sparsity, own = session.pruner, due.sparsity, session.own_sparsities(due.sparsity)
        there = pruner.progress_towards(session.final)
        if sparsity and pruner.units(sparsity) < pruner.units(there):
            # a manual prune_to may have gone further than the plan, or own targets are behind it
            if pruner.layer_progress(own) == 1:
                return None
            sparsity = there
        return pruner.prune_to(sparsity, optimizers, own)

    def after_change(self, pruner: P, entry: HistoryEntry) -> None:
        """Add to the history entry of a change of masks."""

    def acts_on_gradients(self, pruner: P) -> bool:
        """Whether the next event happens within an optimizer step, on its gradients."""
        return waits_for_gradients(pruner)

    def on_gradients(self, pruner: P, optimizer: Optimizer) -> None:
        """Read the dense gradients of a step."""
        pruner.update(optimizer)

    def before_fit(self, session: PruningSession[P]) -> None:
        """Prepare a fit that does not resume, before its events are planned."""

    def on_new_model(self, pruner: P) -> None:
        """Mask a model that comes without saved masks."""

    def after_plan(self, session: PruningSession[P], timeline: Timeline) -> None:
        """Change the plan of a fit that does not resume."""

    def after_replan(self, session: PruningSession[P], timeline: Timeline) -> None:
        """Follow a plan that has moved, because the length of epochs has changed."""

    def before_resume(self, session: PruningSession[P], state: Mapping[str, Any]) -> None:
        """Check or read settings of a checkpoint, before masks and plan are loaded."""

    def after_resume(self, session: PruningSession[P], state: Mapping[str, Any]) -> None:
        """Change what was loaded if the fit now has another length."""

    def after_load(self, session: PruningSession[P], state: Mapping[str, Any]) -> None:
        """Load the strategy's own state, after the pruner's."""

    def state_dict(self, session: PruningSession[P]) -> Mapping[str, object]:
        """The strategy's own state, which is saved with the session's."""
        return {}

    def flush_dense(self, pruner: P) -> None:
        """Move dense values out of the parameters if no optimizer step did."""
        pruner.flush_dense()

    def is_changing(self, pruner: P) -> bool:
        """Whether the sparsity changes between events too."""
        return False

    def sparsity(self, pruner: P) -> float:
        """The masked fraction of the prunable weights."""
        return pruner.sparsity

    def densities(self, pruner: P) -> dict[str, float]:
        """The kept fraction of each parameter."""
        return pruner.densities

    def schedule_done(self, session: PruningSession[P]) -> bool:
        """Whether all planned events have happened, and nothing was regrown since."""
        progress = session.progress
        return progress.started and progress.all_done and session.is_as_sparse(progress.plan)

    def at_target(self, session: PruningSession[P]) -> bool:
        """Whether no event that prunes is left; a plan may end dense after that."""
        progress = session.progress
        return progress.started and progress.pruned and session.is_as_sparse(progress.sparse)


@dataclass(eq=False)
class GradualMagnitude(PruningStrategy[Pruner]):
    """Prunes weights; with `from_zeros` also those that are zero when the first fit starts."""

    config: PruningConfig
    from_zeros: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("from_zeros", self.from_zeros)

    def make_pruner(self, model: nn.Module) -> Pruner:
        return Pruner(model, self.config, keep_removed=self.keep_removed, soft=self.soft)

    def on_new_model(self, pruner: Pruner) -> None:
        if self.from_zeros and not (pruner.pruned or pruner.history):
            pruner.mask_zeros()

    def before_fit(self, session: PruningSession[Pruner]) -> None:
        self.on_new_model(session.pruner)


class PruningSession(Generic[P]):
    """A pruner with its schedule, in and out of fits.

    Between `start` and `stop` it has a clock and optimizers. `begin` or `resume` plans the events;
    then `step` is called once per batch, and `on_gradients` on the dense gradients of each
    optimizer step.
    """

    def __init__(
        self,
        strategy: PruningStrategy[P],
        schedule: Schedule,
        final: float,
        on_change: str,
        name: str = "session",
    ) -> None:
        self.strategy = strategy
        self.schedule = schedule
        self.final = final
        self.on_change = check_choice("on_change", on_change, ("refuse", "keep", "stretch"))
        self.name = name
        self.progress = Progress()
        self.transaction = Transaction()  # of the fit; the pruner has its own
        self.clock: Clock | None = None
        self.events: SuiteEvents | None = None
        self.optimizers: list[Optimizer] = []
        self.averages = Averages()
        self.current: P | None = None
        self._timeline: Timeline | None = None  # of which the events are planned
        self._by_epoch = any(time.unit == "ep" and time.amount for time in schedule.times())
        self._handles: list[Removable] = []
        self._manual = False

    @property
    def pruner(self) -> P:
        """The pruner; there is one once a fit has begun or a model was attached."""
        if self.current is None:
            raise StateError(
                f"{self.name.partition('{')[0]} has seen no model yet: call trainer.fit, or "
                "attach(model, ckpt) for a model loaded outside a fit"
            )
        return self.current

    @property
    def time(self) -> Clock:
        """The clock, within a fit."""
        assert self.clock is not None
        return self.clock

    @property
    def timeline(self) -> Timeline:
        """The epochs and the end of the fit whose events are planned."""
        return self.time.timeline(self.progress.epochs)

    def resolve(self, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        return self.strategy.plan(self, timeline, start)

    def is_as_sparse(self, planned: Sequence[Milestone]) -> bool:
        """Whether the model is as sparse as the last of these milestones, or as the target."""
        return self.current is not None and self._has(
            planned[-1].sparsity if planned else self.final
        )

    def own_sparsities(self, sparsity: float) -> dict[str, float]:
        """The sparsities of layers with a separate target when the others are at `sparsity`."""
        pruner = self.pruner
        own, densities = pruner.layer_targets, pruner.layer_densities
        return layer_sparsities(self.schedule, sparsity, self.final, own, densities)

    def attach(self, model: nn.Module, state: Mapping[str, Any] | None = None) -> None:
        """Create a pruner for a model outside a fit; after an error the present one stays."""
        before, self.current = self.current, self.strategy.make_pruner(model)
        self.averages = Averages()
        try:
            if state is not None:
                self.load(state)
            else:
                self.strategy.on_new_model(self.current)
        except RegrowError:
            self.current = before
            raise

    def start(
        self,
        clock: Clock,
        optimizers: list[Optimizer],
        *,
        averages: Averages | None = None,
        events: SuiteEvents | None = None,
        manual: bool = False,
    ) -> None:
        """Enter a fit: mask weights, and averaged copies, after each step of its optimizers.

        `manual`: a raw optimizer may step without `on_gradients` and `prepare`; gradients are then
        masked in a hook of the optimizer.
        """
        if self.strategy.keep_removed == "moments":
            check_moments_stored(optimizers)
        self.clock, self.events, self.optimizers = clock, events, optimizers
        self.averages, self._manual = averages or Averages(), manual
        self._add_hooks()

    def rebind(self) -> None:
        """Carry the masks over to parameters that replaced those of the model within the fit."""
        state = self.state_dict()
        self._remove_hooks()
        self.current = self.strategy.make_pruner(self.pruner.model)
        self.load(state)
        self._add_hooks()
        self.pruner.enforce(self.optimizers)

    def add_step_hook(self, optimizer: Optimizer, hook: Callable[..., None]) -> None:
        """Call a hook after each step of an optimizer until the fit ends."""
        self._handles += add_step_hooks(optimizer, after=hook)

    def stop(self) -> None:
        """Leave the fit: remove the hooks."""
        self._remove_hooks()
        self.clock, self.events, self.optimizers = None, None, []

    def begin(self) -> None:
        """Plan the events of a fit that does not resume, from the model's present sparsity."""
        self.strategy.before_fit(self)
        pruner, clock, final = self.pruner, self.time, self.final
        first, epoch = clock.start_step()
        timeline, start = clock.timeline({epoch: first}), pruner.progress_towards(final)
        check_target_reachable(pruner, start, final)
        plan: PruningPlan = ()
        there = final > 0 and pruner.units(start) == pruner.units(final)
        if there and (least := pruner.layer_progress(pruner.layer_targets)) < 1:
            there, start = False, final * least  # only layers with a separate target are behind
        if isinstance(self.schedule, Exponential):
            start = self.schedule.nearest_round(start, final, pruner.units)
        if not there and timeline.total != 0:
            plan = (Milestone(first, final),) if clock.dry_run else self.resolve(timeline, start)
        if plan:
            pruner.check_reachable(max(milestone.sparsity for milestone in plan))
        self.progress, self._timeline = Progress(plan, 0, start, {epoch: first}), timeline
        self.strategy.after_plan(self, timeline)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Load masks, plan and number of past events to continue an interrupted fit."""
        self.strategy.before_resume(self, state)
        check_same_settings(state["config"], self.strategy.config.to_dict())
        if state["final"] != self.final:
            raise StateError(
                f"the checkpoint was pruned towards sparsity {state['final']:g}, this callback "
                f"towards {self.final:g}: to change the target, load the weights and start a fit"
            )
        self.load(state)
        now, _ = self.time.start_step()
        follows = self.progress.resume(self.resolve, self.timeline, now, self.on_change)
        self.strategy.after_resume(self, state)
        self._timeline = self.timeline if follows else None

    def begin_epoch(self) -> None:
        """Record where an epoch begins; call it at its first batch, and when training resumes."""
        self.progress.epochs.setdefault(self.time.position()[1], self.time.current_step())

    def replan(self) -> bool:
        """Move the events to come if epochs have changed in length, and return whether they have.

        Call it as `begin_epoch`. What a resume with on_change="keep" has kept does not move.
        """
        self.begin_epoch()
        progress, before = self.progress, self._timeline
        if before is None or progress.all_done or self.time.dry_run:
            return False
        self._timeline = timeline = replace(self.timeline, estimated=True)
        if timeline == before:
            return False
        progress.replan(self.resolve, timeline, self.time.current_step())
        self.strategy.after_replan(self, timeline)
        return True

    def due(self) -> Milestone | None:
        """The milestone that is due now, if any; fast if there is none."""
        progress, clock = self.progress, self.clock
        plan, done = progress.plan, progress.n_done
        if done >= len(plan) or clock is None:
            return None
        now = clock.current_step()
        if plan[done].step > now:
            return None
        return progress.due(now, self._timeline if self._by_epoch else None)

    def step(self) -> None:
        """Run a due event, unless it needs gradients; call it before each batch."""
        if (due := self.due()) is not None and not self.strategy.acts_on_gradients(self.pruner):
            self.fire(due)

    def on_gradients(self, optimizer: Optimizer) -> None:
        """Read a step's dense, unscaled, unclipped gradients, and run a due event.

        If the batch was skipped, the step has none, and the event waits for the next one.
        """
        pruner = self.pruner
        if not (waits_for_gradients(pruner) and has_gradients(optimizer)):
            return
        self.strategy.on_gradients(pruner, optimizer)
        if (due := self.due()) is not None:
            check_gradients_together(self.optimizers, pruner)
            if pruner.trained_by(optimizer):
                self.fire(due)

    def fire(self, due: Milestone) -> None:
        """Run a due event, unless another callback delays it."""
        if self.events is not None:
            if not self.events.allows():
                return
            self.events.before()
        with self.transaction.guard(f"the event at step {due.step}"):
            masks, before = self.averages.masks(self.pruner.enforcer), self.pruner.sparsity
            entry = self.strategy.apply(self, due, self.optimizers)
            if entry is not None:
                self._finish(entry, masks, before)
            self.progress.mark_done(due)

    def change(self, act: Callable[[list[Optimizer]], HistoryEntry]) -> HistoryEntry:
        """Change masks outside of the schedule; `act` gets the optimizers of the fit, if any."""
        masks, before = self.averages.masks(self.pruner.enforcer), self.pruner.sparsity
        at = self.clock and f"an event at step {self.clock.position()[0]}"
        with self.transaction.guard(at) if at else nullcontext():
            entry = act(self.optimizers)
            self._finish(entry, masks, before)
        return entry

    def on_other_event(self) -> None:
        """Mask again after another pruner of the model has changed weights.

        Gradients stay as they are: other callbacks may still need the dense ones.
        """
        if self.current is not None:
            self.current.enforcer.weights()
            self.current.enforcer.state(self.optimizers)
            self.averages.mask(self.current.enforcer)

    def resize(self, plan: ChannelCut) -> None:
        """Follow a cut of channels, and store which planned sparsity was reached before it."""
        if self.current is not None:
            planned = [self.final, *(sparsity for _, sparsity in self.progress.plan)]
            before = [sparsity for sparsity in planned if self._has(sparsity)]
            self.current.state.resize(plan.slice)
            self.current.state.sparsity_before_cut = max(before, default=0.0)

    def mask_averages(self) -> None:
        """Zero the pruned weights of averaged copies."""
        if self.current is not None:
            self.averages.mask(self.current.enforcer)

    def add_position(self, entry: HistoryEntry) -> None:
        """Add step and epoch to a history entry that was made within a fit."""
        if self.clock is not None:
            entry["step"], entry["epoch"] = self.clock.position()

    def record_rollback(self, failed: float, lost: float | None) -> None:
        """Add to the history that an event was rolled back, and how much it had lost."""
        entry = self.pruner.record_event("rollback", failed, lost=lost)
        self.add_position(entry)
        self._check_ranks("a rollback")

    def state_dict(self) -> SessionState:
        """The state that `resume` needs; what a model or a fit makes is None before the first."""
        self.transaction.check()
        return {
            "format": FORMAT,
            "final": self.final,
            "config": self.strategy.config.to_dict(),
            "pruner": None if self.current is None else self.current.state_dict(),
            "progress": self.progress.state_dict() if self.progress.started else None,
            **self.strategy.state_dict(self),  # type: ignore[typeddict-item]
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.pruner.load_state_dict(state["pruner"])
        self._check_ranks("resuming")
        if state["progress"] is not None:
            self.progress.load_state_dict(state["progress"])
        self.strategy.after_load(self, state)

    def _has(self, sparsity: float) -> bool:
        """Whether the model has a planned sparsity, or had it before channels were cut out."""
        return as_sparse(self.pruner, sparsity, self.final, self.own_sparsities(sparsity))

    def _add_hooks(self) -> None:
        enforcer = self.pruner.enforcer
        for optimizer in self.optimizers:
            self._handles.append(enforcer.hook(optimizer, gradients=self._manual))

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _finish(self, entry: HistoryEntry, masks: Any, before: float) -> None:
        """Complete a change of masks: averages, history, other callbacks."""
        self.transaction.mark_started()  # masks changed, but others were not called yet
        self.strategy.after_change(self.pruner, entry)
        self.averages.sync_changed(self.pruner.enforcer, masks)
        self.add_position(entry)
        if self.events is not None:
            self.events.after(entry, before)

    def _check_ranks(self, when: str) -> None:
        if self.events is not None:
            self.events.check_ranks(when)
