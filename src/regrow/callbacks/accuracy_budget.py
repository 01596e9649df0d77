# SPDX-License-Identifier: MIT
"""AccuracyBudget: prunes as far as a monitored metric allows."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from lightning_utilities.core.rank_zero import rank_zero_info

from regrow.callbacks.core.averaging import Averages
from regrow.callbacks.core.base import Callback, PruneEvent, PrunerOwner
from regrow.callbacks.core.checkpoint_files import save_atomic
from regrow.callbacks.core.clock import Clock
from regrow.callbacks.core.compatibility import check_combination
from regrow.callbacks.core.consistency import reduce_metric
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.queries import pruners
from regrow.callbacks.core.summary import warn_ended_early
from regrow.schedules.base import Milestone, PruningPlan
from regrow.schedules.bisection import Bisection, BisectionStateDict
from regrow.schedules.progress import Progress, ProgressStateDict
from regrow.schedules.time import Time, TimeLike, parse_time
from regrow.utils.errors import ConfigError, StateError, check_choice, check_positive, check_rate
from regrow.utils.lightning_classes import lightning_classes, pl
from regrow.utils.snapshot import SnapshotStateDict, TrainingSnapshot, copy_to_cpu

ROUNDING = 4 * 2.0**-23  # of logged float32 values, relative to them


class OpenEvent(TypedDict):
    """An event that is being judged."""

    sparsity: float  # after it
    step: int  # recovery counts from here
    event: int  # its number in the pruner's history


class SnapshotState(TypedDict):
    """Copies in host memory, see `FitSnapshot`."""

    training: SnapshotStateDict  # parameters, buffers and the optimizers' state
    pruner: dict[str, Any]
    progress: ProgressStateDict
    averages: list[dict[str, Any]]  # the state of each


class BudgetState(TypedDict):
    """The saved state of `AccuracyBudget`."""

    reference: float | None  # the dense value; None before the first validation
    search: BisectionStateDict
    open: OpenEvent | None  # the event that is being judged
    lost: float | None  # what that event lost, if it failed and is not rolled back yet
    snapshot: SnapshotState | None  # before that event
    epochs: dict[int, int]  # the first step of each epoch of the fit


class AccuracyBudget(Callback):
    """Prune as far as a metric allows: roll back events that lose too much.

    After each event the network trains for `recover`; then the metric is compared with the dense
    reference. If it lost more than `max_drop`, weights, optimizer state, averages (EMA), masks and
    schedule are restored bit-exactly, and the step of sparsity is halved until it reaches
    `resolution`. Global step and learning rate do not go back. The next event waits until the last
    one is judged. The fit ends with the sparsest model within the budget, which `last.ckpt` holds.
    Every fit searches anew, except one that resumes. A dry run (`fast_dev_run`) judges nothing.

    In the pruner's `history`, accepted events have `lost`, events taken back have the kind
    "rollback", and the last one has `reason`.

    Args:
        monitor: A metric that validation logs.
        max_drop: Largest allowed loss, in the metric's unit: 0.01 is one point of accuracy. A loss
            that exceeds it only by float32 rounding is allowed.
        mode: "max" if higher is better, "min" if lower is.
        recover: Training time before an event is judged, at the next validation.
        reference: The dense value; None: the best one seen at sparsity 0.
        resolution: The step of sparsity at which the search ends.

    Raises:
        ConfigError: For invalid settings; if the fit has no room for one event and its recovery;
            beside `DynamicSparseTraining`, whose sparsity is constant.
        StateError: If the metric is never logged, or no validation precedes the first event.

    Example:
        >>> AccuracyBudget("val/accuracy", max_drop=-1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        regrow.ConfigError: max_drop must be a number above 0, got -1: write 0.01 for one ...
    """

    needs_whole_parameters = needs_rising_sparsity = restores_weights = True
    searches_sparsity = True
    reference: float | None  # the dense value; None before the first validation
    search: Bisection
    _pruner: PruningCallback  # from the fit's start
    _clock: Clock
    _open: OpenEvent | None  # the event that is being judged
    _lost: float | None  # by the event that is to be rolled back
    _snapshot: FitSnapshot | None  # before that event
    _epochs: dict[int, int]  # the first step of each, by its number

    def __init__(
        self,
        monitor: str,
        max_drop: float,
        *,
        mode: str = "max",
        recover: TimeLike = "1ep",
        reference: float | None = None,
        resolution: float = 0.01,
    ) -> None:
        super().__init__()
        self.monitor = monitor
        self.max_drop = check_positive("max_drop", max_drop, "0.01 for one point of accuracy")
        self.mode = check_choice("mode", mode, ("max", "min"))
        self.recover: Time = parse_time("recover", recover)
        self.given = reference
        self.resolution = check_rate("resolution", resolution)
        self._reset()

    @property
    def settled(self) -> bool:
        """Whether no event is being judged or taken back."""
        return self._open is None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":  # a checkpoint's state is loaded after this
            self._reset()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_combination(trainer)
        callbacks = pruners(trainer)
        if len(callbacks) != 1:
            raise ConfigError(
                f"AccuracyBudget judges one pruning callback, the Trainer has {len(callbacks)}"
            )
        [self._pruner] = callbacks
        self._clock = Clock(trainer, [self.recover])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._lost is not None:  # before the pruner's event of this batch
            self._roll_back(trainer, pl_module)

    def on_suite_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epochs.setdefault(trainer.current_epoch, self._clock.current_step())
        progress, searches = self._pruner.progress, self.search.lowest_rejected is not None
        moved = not searches and self._pruner.session.replan()
        if moved or not progress.adaptive:  # else resumed: the plan is that of the fit that was cut
            self._make_room(progress)
            progress.adaptive = True

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._lost is not None:  # validated in the middle of an epoch
            self._roll_back(trainer, pl_module)
        elif self.settled:
            self._snapshot = None  # of an event that changed nothing

    def allows_event(self, trainer: pl.Trainer, pruner: PrunerOwner) -> bool:
        return self.settled

    def before_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: PrunerOwner
    ) -> None:
        if self._clock.dry_run:
            return  # a metric after one step says nothing, and there may be no dense value
        if self.reference is None:
            raise StateError(
                f"no validation before the first event logged a number, so there is no dense "
                f"{self.monitor!r} to compare with: begin later, or write reference=VALUE"
            )
        self._snapshot = FitSnapshot.take(trainer, pl_module, pruner)

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        if self._snapshot is None:
            return
        if self._open is not None:  # changed by hand: the present masks are judged
            self._open["sparsity"] = event.after
        elif event.after > event.before:
            step, number = self._clock.current_step(), event.entry["event"]
            self._open = {"sparsity": event.after, "step": step, "event": number}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = self._value(trainer)
        if self._open is None:
            if self.given is None and self._pruner.sparsity == 0 and not math.isnan(value):
                best = max if self.mode == "max" else min
                self.reference = value if self.reference is None else best(self.reference, value)
        elif self._lost is None and self._recovered(self._open["step"]):
            self._judge(value)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        open_still = self._open is not None
        over = not open_still and not self._pruner.progress.remaining
        searching = open_still or self._is_searching()
        if open_still:  # failed just now, or never judged
            self._roll_back(trainer, pl_module)
        self._conclude(cut=True)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            saves = isinstance(callback, lightning_classes("callbacks.ModelCheckpoint"))
            if saves and callback.last_model_path and not over:
                save_atomic(trainer, callback.last_model_path, trainer.save_checkpoint)
        if open_still:  # the average in the module may include the rolled-back event
            Averages(trainer).copy_to_model(pl_module)
        cause = (
            "AccuracyBudget was still searching: train longer, validate more often, or write a "
            "shorter recover= or a larger resolution="
        )
        warn_ended_early(trainer, self._pruner.session, searching=cause if searching else "")

    def state_dict(self) -> dict[str, Any]:
        state: BudgetState = {
            "reference": self.reference,
            "search": self.search.state_dict(),
            "open": None if self._open is None else self._open.copy(),
            "lost": self._lost,
            "snapshot": None if self._snapshot is None else self._snapshot.state_dict(),
            "epochs": dict(self._epochs),
        }
        return {**state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reference, snapshot = state_dict["reference"], state_dict["snapshot"]
        self.search.load_state_dict(state_dict["search"])
        self._open, self._lost = state_dict["open"], state_dict["lost"]
        self._epochs = dict(state_dict["epochs"])
        self._snapshot = None if snapshot is None else FitSnapshot.loaded(snapshot)

    def _reset(self) -> None:
        self.reference, self.search = self.given, Bisection(self.resolution)
        self._open = self._lost = self._snapshot = None
        self._epochs = {}

    def _recovered(self, event: int) -> bool:
        """Whether the network has trained for `recover` since the step of an event."""
        return self._behind() >= self._clock.timeline(self._epochs).after(event, self.recover)

    def _behind(self) -> int:
        """The number of steps done; call it after a batch."""
        return self._clock.start_step()[0]

    def _value(self, trainer: pl.Trainer) -> float:
        if self.monitor not in trainer.callback_metrics:
            raise StateError(
                f"AccuracyBudget monitors {self.monitor!r}, which validation never logged: there "
                f"are {', '.join(map(str, trainer.callback_metrics)) or 'no metrics'}"
            )
        return reduce_metric(trainer, float(trainer.callback_metrics[self.monitor]))

    def _judge(self, value: float) -> None:
        assert self._open is not None
        assert self.reference is not None
        lost = self.reference - value if self.mode == "max" else value - self.reference
        sparsity = self._open["sparsity"]
        rounding = ROUNDING * max(abs(self.reference), abs(value))
        if not lost - rounding <= self.max_drop:  # NaN is rejected too
            self._lost = lost
            self.search.reject(sparsity)
            return
        self.search.accept(sparsity)
        self._pruner.history[self._open["event"]]["lost"] = lost
        self._open = self._snapshot = None
        if self.search.lowest_rejected is not None:
            self._pruner.progress.set_next(self._behind(), self.search.next())
        self._conclude()

    def _roll_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._open is not None
        assert self._snapshot is not None
        sparsity, lost = self._open["sparsity"], self._lost
        with self._pruner.session.transaction.guard("a rollback"):
            self._pruner.session.transaction.mark_started()
            self._snapshot.restore(trainer, pl_module, self._pruner)
            finite = lost is not None and math.isfinite(lost)  # JSON has no NaN
            self._pruner.session.record_rollback(sparsity, lost if finite else None)
            if lost is not None:  # else the event was not judged and is repeated
                self.search.accept(self._pruner.pruner.sparsity)  # the fit may have begun at it
                self._pruner.progress.set_next(self._behind(), self.search.next())
            self._open = self._lost = self._snapshot = None
            self._conclude()

    def _conclude(self, cut: bool = False) -> None:
        """Record why the search ended, if it has ended or the fit ends."""
        ahead = self._pruner.progress.remaining
        judged = [entry for entry in self._pruner.history if "lost" in entry]
        began = self.search.highest_accepted or self.search.lowest_rejected is not None
        if judged and began and (cut or not ahead):  # else they are of an earlier fit
            judged[-1]["reason"] = self.search.reason(ahead[0].sparsity if ahead else None)

    def _is_searching(self) -> bool:
        """Whether events were rejected, or delayed until others had been judged."""
        ahead, (now, _) = self._pruner.progress.remaining, self._pruner.session.time.start_step()
        delayed = bool(ahead) and ahead[0].step < now and self.search.highest_accepted > 0
        return delayed or self.search.lowest_rejected is not None

    def _make_room(self, progress: Progress) -> None:
        """Drop events until the others and their recovery times fit into the fit."""
        epoch, first = list(self._epochs.items())[-1]
        timeline = self._clock.timeline({epoch: first})
        validations = self._clock.validations({epoch: first})
        recover = timeline.length(self.recover)
        planned = tuple(Milestone(max(s, timeline.start), level) for s, level in progress.remaining)
        if timeline.end is None or not planned or self._clock.dry_run:
            return
        # a dense value is measured before the first event
        measured = self.reference is not None or not validations or len(planned) == 1
        first = timeline.start if measured else math.ceil(validations[0])
        step, fits = timeline.start, planned[0].step >= first
        for milestone in planned:  # each waits until the last one is judged
            step = max(step, milestone.step) + recover
            later = bisect_left(validations, step)
            fits &= later < len(validations) if validations else step <= timeline.end
            step = int(validations[later]) if later < len(validations) else step
        if fits:
            return
        kept = with_recovery(planned, recover, validations, first)
        if not kept and progress.adaptive:
            return  # epochs have become shorter, and may become longer again
        if not kept:
            raise ConfigError(
                f"{len(planned)} events, each with {self.recover} of recovery, end at step "
                f"{step}, the fit before step {timeline.end}, and there is no room for one event "
                "between the first validation and the last: write a shorter recover, validate "
                "more often, or train longer"
            )
        progress.plan = progress.plan[: progress.n_done] + kept
        rank_zero_info(
            f"AccuracyBudget judges each event after {self.recover} of recovery: of "
            f"{len(planned)} planned events {len(kept)} remain, at steps "
            f"{', '.join(str(milestone.step) for milestone in kept)}"
        )


@dataclass(frozen=True)
class FitSnapshot:
    """Copies in host memory of a fit's state, which can be restored in place."""

    training: TrainingSnapshot
    pruner: dict[str, Any]
    progress: ProgressStateDict
    averages: list[dict[str, Any]]

    @classmethod
    def take(
        cls, trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: PrunerOwner
    ) -> FitSnapshot:
        """Copy everything that an event and the training after it can change."""
        # parameters by name, because a module's own state_dict may leave some of them out
        return cls(
            TrainingSnapshot(pl_module, moments=trainer.optimizers),
            copy_to_cpu(pruner.pruner.state_dict()),
            pruner.progress.state_dict(),
            copy_to_cpu(Averages(trainer).state_dict()),
        )

    def restore(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: PrunerOwner
    ) -> None:
        """Restore the copies in place. Learning rates and the global step stay as they are."""
        pruner.pruner.load_state_dict(self.pruner)
        epochs = pruner.progress.epochs  # the present ones: time does not go back
        pruner.progress.load_state_dict({**self.progress, "epochs": epochs})
        self.training.restore(pl_module, moments=trainer.optimizers)
        pruner.pruner.enforce(trainer.optimizers)
        Averages(trainer).load_state_dict(self.averages, pl_module)

    def state_dict(self) -> SnapshotState:
        """The copies as tensors and builtin types."""
        return {
            "training": self.training.state_dict(),
            "pruner": self.pruner,
            "progress": self.progress,
            "averages": self.averages,
        }

    @classmethod
    def loaded(cls, state: Mapping[str, Any]) -> FitSnapshot:
        """Make a snapshot from the result of `state_dict`."""
        training = TrainingSnapshot.loaded(state["training"])
        assert training is not None
        return cls(training, state["pruner"], state["progress"], state["averages"])


def with_recovery(
    plan: PruningPlan, recover: int, validations: Sequence[float], first: int = 0
) -> PruningPlan:
    """Choose events of a plan so that each is judged before the next one; none if none can be.

    An event at step s is judged at the first of the `validations` at s + `recover` or later. Events
    are chosen from the last to the first, none before step `first`; the last one chosen gets the
    plan's final sparsity.

    Example:
        >>> plan = tuple(Milestone(step, step / 100) for step in range(10, 80))
        >>> [(m.step, m.sparsity) for m in with_recovery(plan, 10, range(10, 101, 10))]
        [(10, 0.1), (20, 0.2), (30, 0.3), (40, 0.4), (50, 0.5), (60, 0.6), (79, 0.79)]
    """
    chosen: list[Milestone] = []
    limit = validations[-1] if validations else -1
    for milestone in reversed(plan):
        judged = bisect_left(validations, milestone.step + recover)
        if milestone.step < first or judged == len(validations) or validations[judged] > limit:
            continue
        sparsity = milestone.sparsity if chosen else plan[-1].sparsity
        chosen.append(Milestone(milestone.step, sparsity))
        limit = milestone.step
    return tuple(reversed(chosen))
