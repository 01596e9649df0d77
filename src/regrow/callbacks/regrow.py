# SPDX-License-Identifier: MIT
"""Regrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from regrow.callbacks.core.base import Callback, PrunerOwner
from regrow.callbacks.core.clock import Clock
from regrow.callbacks.core.consistency import reduce_metric
from regrow.callbacks.core.gradients import amp_step_skipped
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.queries import check_has_pruner, no_event_pending
from regrow.callbacks.support.event_times import EventTimes
from regrow.callbacks.support.regrow_request import (
    RegrowRequest,
    RequestFile,
    check_request,
    parse_request,
    resolve_pruners,
)
from regrow.pruning.freezing import TrainSpec
from regrow.pruning.growth import GrowthCriterion, regrow_count
from regrow.pruning.initializers import Initializer
from regrow.pruning.initializers import original as original_values
from regrow.schedules.time import TimeLike
from regrow.schedules.time import parse_time as parse_time
from regrow.schedules.triggers import Drop, Plateau, TriggerState
from regrow.utils.errors import ConfigError, StateError, check_choice, suggest


class Regrow(Callback):
    """Let pruned weights return during training; see `regrow.Pruner.regrow`.

    Acts on the Trainer's pruning callback at a batch's start; where growth looks at gradients,
    within that batch's step, on the dense gradients before any callback masks them. Events of the
    pruning callback that are still to come prune again. While `AccuracyBudget` judges an event,
    regrowth waits and no condition is judged; it then comes before the next event.

    Args:
        at: A time or a list of times: "3ep", "500it", a fraction of the fit.
        fraction: How much comes back each time, of what is pruned then; or
        count: how many weights.
        by: Which come back: "random", "gradient", "momentum", "removed", or a rule (see
            `regrow.pruning.growth.GrowthCriterion`), which always sees dense gradients.
        init: With what value: see `regrow.pruning.initializers`. "original" is the value at this
            fit's start, unless the pruner remembered one before.
        names: Patterns of parameters; needed where the Trainer has several pruning callbacks.
        train: What trains afterwards: "all", "regrown" or patterns (see `regrow.pruning.freezing`).
        when: `Drop(monitor)` or `Plateau(monitor)`, judged after each validation.
        request: A JSON file below `trainer.default_root_dir`, looked for at each batch's start,
            such as `{"fraction": 0.1, "by": "random", "init": "he", "names": null}` (`fraction` to
            `train` above are its keys). It is renamed to NAME.done, or to NAME.refused with the
            reason at its end, and training goes on. Move it there in one go.
        on_change: What a resume does if max_epochs, batch size or ranks moved the times still to
            come: "refuse", "keep" their steps, or "stretch" them.

    Raises:
        ConfigError: For settings that cannot be meant, at construction where possible, else before
            the first step; if a monitored metric is not logged.

    Example:
        >>> Regrow(at="3ep", fraction=0.1, by="gradient", init="zero").order.dense
        True
    """

    priority = 1  # what is pruned at the same step comes after

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
        request: str | Path | None = None,
        on_change: str = "refuse",
    ) -> None:
        super().__init__()
        given = () if at is None else (at,) if isinstance(at, str | float | int) else tuple(at)
        times = tuple(parse_time("at", time) for time in given)
        self.when = when
        self.request = request
        check_choice("on_change", on_change, ("refuse", "keep", "stretch"))
        self.times = EventTimes(times, on_change)
        if when is not None and not isinstance(when, Drop | Plateau):
            raise ConfigError(
                f"when must be a condition, got {when!r}: write when=Drop('val/accuracy')"
            )
        if not (times or when or request):
            raise ConfigError(
                "Regrow has no occasion: write at='3ep', when=Drop('val/accuracy') or "
                "request='regrow.json'"
            )
        planned = times or when or fraction is not None or count is not None
        self.order = RegrowRequest(fraction, count, by, init, names, train) if planned else None
        self._key = self._generate_state_key(
            at=[str(time) for time in times], when=str(when), request=str(request), names=names
        )
        self._clock: Clock | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._pending, self._seen = False, TriggerState()
        self._waits = False
        self._file: RequestFile | None = None
        self._asked: RegrowRequest | None = None

    @property
    def state_key(self) -> str:
        return self._key

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_has_pruner(trainer, self, stage)
        if stage == "fit":
            self._loaded, self._asked = None, None
            self._pending, self._seen, self._waits = False, TriggerState(), False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock = Clock(trainer, self.times.at)
        if self.request is not None:
            self._file = RequestFile(Path(trainer.default_root_dir) / self.request)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state, self._loaded = self._loaded, None
        if self.order is not None:
            check_request(trainer, self.order)
        if self.when is not None and not trainer.enable_validation:
            raise ConfigError(
                f"{self.when} is judged after validation, and this fit has none: give fit a "
                "validation loader and the module a validation_step"
            )
        assert self._clock is not None
        if state is None:
            self.times.begin(self._clock)
            self._remember(trainer)
        else:
            self.times.resume(self._clock, state["times"])
            self._pending, self._waits = bool(state["pending"]), bool(state["waits"])
            self._seen = TriggerState(float(state["best"]), int(state["waited"]))

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._poll_request(trainer)
        self._run_due(trainer, dense=False)
        # a request may have been taken away while the job was down
        self._waits &= self._pending or self._asked is not None or self._overdue is not None

    def allows_event(self, trainer: pl.Trainer, pruner: PrunerOwner) -> bool:
        return not self._waits  # for an event to be judged: this one's turn comes before the next

    def on_dense_gradients(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        def ready(callback: PruningCallback, names: list[str] | None) -> bool:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            pruner = callback.pruner
            trained = all(id(target.parameter) in held for target in pruner.named(names))
            return trained and not amp_step_skipped(trainer, optimizer)

        self._run_due(trainer, dense=True, ready=ready)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.when is None or trainer.sanity_checking or self._clock is None:
            return
        metrics = trainer.callback_metrics
        if self.when.monitor not in metrics:
            raise ConfigError(
                f"monitor={self.when.monitor!r} is not logged: "
                f"{suggest(self.when.monitor, [*metrics]) if metrics else 'nothing is'}"
            )
        if not no_event_pending(trainer):  # what falls now may be taken back
            return
        value = reduce_metric(trainer, float(metrics[self.when.monitor]))
        self._seen, holds = self.when.update(value, self._seen)
        self._pending |= holds

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        missed = self.times.steps[self.times.n_done :]
        if missed and not trainer.should_stop:
            rank_zero_warn(
                f"the fit ended before Regrow acted at step {', '.join(map(str, missed))}. Does an "
                "accuracy budget still judge? Does the module call step() of a raw optimizer? "
                "Lightning does not count such steps: use self.optimizers()"
            )

    def state_dict(self) -> dict[str, Any]:
        if self._loaded is not None:
            return dict(self._loaded)
        return {
            "times": self.times.state_dict(),
            "pending": self._pending,
            "waits": self._waits,
            "best": self._seen.best,
            "waited": self._seen.waited,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._clock = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._clock = None

    @property
    def _overdue(self) -> int | None:
        assert self._clock is not None
        return self.times.due(self._clock.current_step())

    def _remember(self, trainer: pl.Trainer) -> None:
        """Lets the pruners remember the values at the fit's start, where they are asked for."""
        if self.order is not None and self.order.init in ("original", original_values):
            for callback, _ in resolve_pruners(trainer, self.order):
                if not callback.pruner.state.originals:
                    callback.pruner.remember_original()

    def _poll_request(self, trainer: pl.Trainer) -> None:
        """Looks for a request, on rank 0; all ranks hear of it."""
        if self._file is None or self._asked is not None:
            return
        text = self._file.read() if trainer.is_global_zero else None
        text = trainer.strategy.broadcast(text) if trainer.world_size > 1 else text
        if text is not None:
            self._guard(trainer, lambda: self._accept(trainer, parse_request(text)))

    def _accept(self, trainer: pl.Trainer, order: RegrowRequest) -> None:
        check_request(trainer, order)
        self._asked = order

    def _guard(self, trainer: pl.Trainer, act: Callable[[], None]) -> None:
        """Does something with a request; where that is refused, training goes on."""
        assert self._file is not None
        try:
            act()
        except (ConfigError, StateError) as error:
            self._asked = None
            rank_zero_warn(f"the request {self._file.path} is refused: {error}")
            if trainer.is_global_zero:
                self._file.mark_rejected(str(error))

    def _run_due(self, trainer: pl.Trainer, dense: bool, ready: _Ready | None = None) -> None:
        """Acts on what is due: times, a condition that holds, a request."""
        order, due = self.order, self._overdue
        if order is not None and order.dense == dense and (due is not None or self._pending):
            cause = str(self.when) if due is None else f"step {due}"
            if self._regrow(trainer, order, cause, ready):
                self._pending = False
                if due is not None:
                    self.times.mark_done(due)
        if self._asked is not None and self._asked.dense == dense:
            self._guard(trainer, lambda: self._run_request(trainer, ready))

    def _run_request(self, trainer: pl.Trainer, ready: _Ready | None) -> None:
        assert self._asked is not None
        assert self._file is not None
        if self._regrow(trainer, self._asked, "request", ready):
            self._asked = None
            if trainer.is_global_zero:
                self._file.mark_done()

    def _regrow(
        self, trainer: pl.Trainer, order: RegrowRequest, cause: str, ready: _Ready | None
    ) -> bool:
        """Regrows, unless an event is being judged, or by gradients that are not these."""
        found, self._waits = resolve_pruners(trainer, order), not no_event_pending(trainer)
        if self._waits:
            return False
        if ready is not None and not all(ready(callback, names) for callback, names in found):
            return False
        for callback, names in found:
            pruned = callback.pruner.state.pruned_in(names)
            alone = order.train == "regrown" and order.fraction is not None
            if pruned and alone and not regrow_count(order.fraction, None, pruned):
                rank_zero_warn(
                    f"less than a weight would come back when Regrow acts ({cause}), so nothing "
                    "came back, and everything goes on training"
                )
            elif pruned:
                entry = callback.regrow(
                    order.fraction,
                    order.count,
                    by=order.by,
                    init=order.init,
                    names=names,
                    train=order.train,
                )
                entry["cause"] = cause
            else:
                rank_zero_warn(
                    f"nothing is pruned when Regrow acts ({cause}), so nothing came back"
                )
        return True


_Ready = Callable[[PruningCallback, "list[str] | None"], bool]
