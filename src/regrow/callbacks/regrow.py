# SPDX-License-Identifier: MIT
"""Regrow: brings pruned weights back at given times or when a metric drops."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypedDict

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from regrow.callbacks.core.base import Callback, PrunerOwner, has_gradients
from regrow.callbacks.core.clock import Clock
from regrow.callbacks.core.consistency import reduce_metric
from regrow.callbacks.core.gradients import amp_step_skipped
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.queries import check_has_pruner, no_event_pending
from regrow.callbacks.support.event_times import EventTimes, EventTimesState
from regrow.callbacks.support.regrow_request import RegrowRequest, check_request, resolve_pruners
from regrow.pruning.freezing import TrainSpec
from regrow.pruning.growth import GrowthCriterion, regrow_count
from regrow.pruning.initializers import Initializer
from regrow.pruning.initializers import original as original_values
from regrow.schedules.time import TimeLike, parse_time
from regrow.schedules.triggers import Drop, Plateau, TriggerState
from regrow.utils.errors import ConfigError, check_choice, suggest
from regrow.utils.lightning_classes import pl
from regrow.utils.optimizers import trained_parameters


class RegrowState(TypedDict):
    """The saved state of `Regrow`."""

    times: EventTimesState  # those of `at`
    pending: bool  # whether the condition `when` holds and regrowth has not happened yet
    waits: bool  # whether regrowth waits for an event to be judged
    best: float  # value of the monitored metric
    waited: int  # validations since then


class Regrow(Callback):
    """Bring pruned weights back during training; see `regrow.Pruner.regrow`.

    Acts at the start of a batch, before a pruning event of the same step; growth by gradients acts
    within the batch's optimizer step, on dense gradients. Later events of the pruning callback
    prune again. While `AccuracyBudget` judges an event, regrowth waits and `when` is not evaluated;
    it then comes before the next event.

    Args:
        at: A time or a list of times: "3ep", "500it", or a fraction of the fit.
        fraction: Fraction of the pruned weights to regrow each time; or
        count: the number of weights.
        by: How weights are chosen: "random", "gradient", "momentum", "removed" or a
            `regrow.pruning.growth.GrowthCriterion`, which sees dense gradients.
        init: Their new values: "zero", "removed", "original" (those at the start of this fit,
            unless the pruner stored earlier ones), "he", "sparse_he", "kaiming_normal",
            "kaiming_uniform", "xavier", "orthogonal", "survivors" (drawn from unpruned weights), or
            a callable.
        names: Patterns of parameters; required if the Trainer has several pruning callbacks.
        train: What trains afterwards: "all", "regrown" or patterns.
        when: `Drop(monitor)` or `Plateau(monitor)`, evaluated after each validation.
        on_change: What to do on resume if max_epochs, batch size or ranks moved the remaining
            times: "refuse" (raise), "keep" their steps, or "stretch" them.

    Raises:
        ConfigError: For invalid settings, at construction where possible, else before the first
            step; if the monitored metric is not logged.

    Example:
        >>> Regrow(at="3ep", fraction=0.1, by="gradient", init="zero").request.dense
        True
    """

    priority = 1  # what is pruned at the same step comes after
    _loaded: dict[str, Any] | None
    _pending: bool  # `when` holds, and regrowth has not happened yet
    _waits: bool  # for an event to be judged

    def __init__(
        self,
        at: TimeLike | list[TimeLike] | None = None,
        fraction: float | None = None,
        count: int | None = None,
        *,
        by: str | GrowthCriterion = "random",
        init: str | Initializer = "he",
        names: str | list[str] | None = None,
        train: TrainSpec = "all",
        when: Drop | Plateau | None = None,
        on_change: str = "refuse",
    ) -> None:
        super().__init__()
        given = () if at is None else (at,) if isinstance(at, str | float | int) else tuple(at)
        times = tuple(parse_time("at", time) for time in given)
        self.when = when
        check_choice("on_change", on_change, ("refuse", "keep", "stretch"))
        self.times = EventTimes(times, on_change)
        if when is not None and not isinstance(when, Drop | Plateau):
            raise ConfigError(
                f"when must be a condition, got {when!r}: write when=Drop('val/accuracy')"
            )
        if not (times or when):
            raise ConfigError("Regrow never acts: write at='3ep' or when=Drop('val/accuracy')")
        self.request = RegrowRequest(fraction, count, by, init, names, train)
        self._reset()

    @cached_property
    def state_key(self) -> str:
        at = [str(time) for time in self.times.at]
        return self._generate_state_key(at=at, when=str(self.when), names=self.request.names)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_has_pruner(trainer, self, stage)
        if stage == "fit":
            self._reset()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.times.clock = Clock(trainer, self.times.at)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state, self._loaded = self._loaded, None
        check_request(trainer, self.request)
        if self.when is not None and not trainer.enable_validation:
            raise ConfigError(
                f"{self.when} is judged after validation, and this fit has none: give fit a "
                "validation loader and the module a validation_step"
            )
        if state is None:
            self.times.begin()
            if self.request.init in ("original", original_values):
                for callback, _ in resolve_pruners(trainer, self.request):
                    if not callback.pruner.state.originals:
                        callback.pruner.remember_original()
        else:
            self.times.resume(state["times"])
            self._pending, self._waits = state["pending"], state["waits"]
            self._seen = TriggerState(state["best"], state["waited"])

    def on_suite_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.times.begin_epoch()

    def on_suite_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if not self.request.dense:
            self._run_due(trainer)
        # a resumed fit may have moved the time
        self._waits &= self._pending or self.times.due() is not None

    def allows_event(self, trainer: pl.Trainer, pruner: PrunerOwner) -> bool:
        return not self._waits  # regrowth that waits comes before the next event

    def on_dense_gradients(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        if self.request.dense and has_gradients(optimizer):  # none if the batch was skipped
            self._run_due(trainer, optimizer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.when is None or trainer.sanity_checking or self.times.clock is None:
            return
        metrics = trainer.callback_metrics
        if self.when.monitor not in metrics:
            raise ConfigError(
                f"monitor={self.when.monitor!r} is not logged: "
                f"{suggest(self.when.monitor, [*metrics]) if metrics else 'nothing is'}"
            )
        if not no_event_pending(trainer):  # a drop now may be of an event that is rolled back
            return
        value = reduce_metric(trainer, float(metrics[self.when.monitor]))
        self._seen, holds = self.when.update(value, self._seen)
        self._pending |= holds

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        missed = self.times.remaining
        if missed and not trainer.should_stop and self.times.clock is not None:
            rank_zero_warn(
                f"the fit ended before Regrow acted at step {', '.join(map(str, missed))}: "
                f"{self.times.why_missed()}"
            )

    def state_dict(self) -> dict[str, Any]:
        if self._loaded is not None:
            return self._loaded
        state: RegrowState = {
            "times": self.times.state_dict(),
            "pending": self._pending,
            "waits": self._waits,
            "best": self._seen.best,
            "waited": self._seen.waited,
        }
        return {**state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.times.clock = None

    def _reset(self) -> None:
        self._loaded, self._seen = None, TriggerState()
        self._pending = self._waits = False

    def _run_due(self, trainer: pl.Trainer, optimizer: Optimizer | None = None) -> None:
        """Regrow if a time has come or a condition holds, unless an event is still judged.

        With an optimizer, only on its gradients, if it trains all that may regrow.
        """
        due = self.times.due()
        if due is None and not self._pending:
            return
        chosen, self._waits = resolve_pruners(trainer, self.request), not no_event_pending(trainer)
        if self._waits:
            return
        if optimizer is not None:
            targets = [t for callback, names in chosen for t in callback.pruner.named(names)]
            trained = {id(target.parameter) for target in targets} <= trained_parameters(optimizer)
            if not trained or amp_step_skipped(trainer, optimizer):
                return
        cause = str(self.when) if due is None else f"step {due}"
        for callback, names in chosen:
            self._regrow(callback, names, cause)
        self._pending = False
        if due is not None:
            self.times.mark_done(due)

    def _regrow(self, callback: PruningCallback, names: list[str] | None, cause: str) -> None:
        request, pruned = self.request, callback.pruner.state.pruned_in(names)
        fraction, count = request.fraction, request.count
        if (learning := callback.changes_between_events) or not pruned:
            why = "masks are being learned" if learning else "nothing is pruned"
            rank_zero_warn(f"{why} when Regrow acts ({cause}), so nothing regrows")
            return
        only_regrown = request.train == "regrown" and fraction is not None
        if only_regrown and not regrow_count(fraction, None, pruned):
            rank_zero_warn(
                f"less than one weight would regrow when Regrow acts ({cause}), so nothing "
                "regrows, and all weights keep training"
            )
            return
        entry = callback.regrow(
            fraction, count, by=request.by, init=request.init, names=names, train=request.train
        )
        entry["cause"] = cause
