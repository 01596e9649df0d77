# SPDX-License-Identifier: MIT
"""Rewind: goes back to earlier weights or learning rates after each prune event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from regrow.callbacks.core.averaging import Averages
from regrow.callbacks.core.base import Callback, PruneEvent, waits_for_gradients
from regrow.callbacks.core.checkpoint_files import check_trained_with
from regrow.callbacks.core.clock import Clock
from regrow.callbacks.core.compatibility import check_combination
from regrow.callbacks.core.pruning_callback import pruning_callbacks
from regrow.callbacks.support.lr_rounds import check_lr_schedules_fit
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.schedules.base import step_within
from regrow.schedules.time import TimeLike, Timeline, parse_time
from regrow.utils.errors import ConfigError, StateError, check_choice, check_count
from regrow.utils.lightning_classes import pl
from regrow.utils.names import parameters
from regrow.utils.snapshot import SnapshotStateDict, TrainingSnapshot

# "fresh": the optimizer's state becomes that of a new optimizer
_PRESETS = {"weights": ("weights", "lr", "fresh"), "lr": ("lr",), "finetune": ()}
_PARTS = ("weights", "lr", "optimizer")
FORMAT = 1


class RewindState(TypedDict):
    """The saved state of `Rewind`."""

    format: int  # version of this layout
    parts: list[str]  # what rewinds: "weights", "lr", "optimizer", "fresh" (a reset optimizer)
    step: int | None  # to which it rewinds; None before a fit
    memory: SnapshotStateDict | None  # the state at that step; None before it
    fresh: SnapshotStateDict | None  # of new optimizers, if they are reset


class Rewind(Callback):
    """Rewind weights, learning rate or optimizer after each prune event (lottery tickets).

    Rewound weights are all parameters and buffers, batch-norm statistics included; masks are
    applied to them at once. Global step, epochs and data order do not go back. An average (EMA)
    restarts from the rewound weights.

    A learning-rate schedule must span one round: `restart_each_round` makes one of any scheduler.
    After its end the rest of a round trains at its last rate. A round that rewinds to step k starts
    at step k of the schedule: with `Exponential(begin="10ep", every="9ep")` and `to="1ep"` each
    round ends with the schedule.

    Args:
        to: "500it", "3ep", "0it" (the initialization) or a fraction of the fit, counted from its
            start; no event may come before it.
        what: "weights" (weights and learning rate rewind, the optimizer is reset), "lr" (only the
            learning rate rewinds), "finetune" (weights stay, the learning rate keeps its last
            value), or a list of "weights", "lr", "optimizer".
        reinit: A seed. At the last planned event the values of each parameter of `to="0it"` are
            shuffled, which is another draw from its initializer: the control experiment that trains
            the ticket's mask from other weights.

    Raises:
        ConfigError: For invalid settings, at construction where possible, else before the first
            step.

    Source: Frankle and Carbin 2019, arXiv 1803.03635 (to "0it", `reinit`); Frankle et al. 2020,
    arXiv 1912.05671 (to a later step); Renda et al. 2020, arXiv 2003.02389 ("lr").

    Example:
        >>> Rewind("500it", what="wieghts")
        Traceback (most recent call last):
            ...
        regrow.ConfigError: what must be one of finetune, lr, weights, got 'wieghts': \
did you mean 'weights'?
    """

    needs_whole_parameters = needs_rising_sparsity = rewinds = True
    _timeline: Timeline | None  # of a fit whose plan is still to be checked
    _step: int | None  # to which it rewinds
    _memory: TrainingSnapshot | None  # at that step
    _fresh: TrainingSnapshot | None  # the state of new optimizers
    _pending: TrainingSnapshot | None  # goes back at the batch's end

    def __init__(
        self, to: TimeLike, what: str | Sequence[str] = "weights", *, reinit: int | None = None
    ) -> None:
        super().__init__()
        self.to = parse_time("to", to)
        if isinstance(what, str):
            self.parts: tuple[str, ...] = _PRESETS[check_choice("what", what, _PRESETS)]
        else:
            self.parts = tuple(check_choice("what", part, _PARTS) for part in what)
            if not self.parts:
                raise ConfigError("what=() rewinds nothing: write 'finetune', or leave Rewind out")
        self.scheduled = "lr" in self.parts or what == "finetune"
        self.reinit = None if reinit is None else check_count("reinit", reinit, least=0)
        if reinit is not None and ("weights" not in self.parts or self.to.amount):
            raise ConfigError(
                f"reinit draws another initialization, got to={to!r}, what={what!r}: write "
                "to='0it', what='weights'"
            )
        self.restores_weights = bool(self.parts)
        self._clock: Clock | None = None
        self._reset()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._reset()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        check_trained_with(self, trainer, checkpoint)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_combination(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        times = [time for pruner in pruning_callbacks(trainer) for time in pruner.schedule.times()]
        self._clock = Clock(trainer, [self.to, *times])
        first, epoch = self._clock.start_step()
        if self._step is None:
            timeline = self._clock.timeline({epoch: first})
            dry = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
            self._step = first if dry else step_within("to", self.to, timeline)
            self._timeline = None if dry else timeline
            if "fresh" in self.parts:  # some optimizers have state from the start
                self._fresh = TrainingSnapshot(moments=trainer.optimizers)
        self._check(trainer)
        self._maybe_snapshot(trainer, pl_module, first)

    def on_suite_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        session = pruning_callbacks(trainer)[0].session
        if self._memory is None and self.to.unit != "it" and not session.time.dry_run:
            session.begin_epoch()
            self._step = session.timeline.step(self.to, "to")  # epochs may have changed in length
            self._maybe_snapshot(trainer, pl_module, session.time.current_step())

    def on_suite_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self._check(trainer)  # if a pruner comes later in the list

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        further = event.entry["kind"] == "prune" and event.after > event.before
        if not further or self._clock is None or not self.parts:
            return
        if self._memory is None:
            raise StateError(
                f"pruned at step {event.step}, before the step to which to={self.to} rewinds "
                f"({self._step}): prune later, or write to='0it'"
            )
        event.entry["rewound_to"] = self._step
        now, memory = self._clock.current_step(), self._memory
        last = not any(
            milestone.step > now
            for pruner in pruning_callbacks(trainer)
            for milestone in pruner.progress.remaining
        )
        if self.reinit is not None and last:
            memory = memory.permuted(self.reinit)
        if waits_for_gradients(event.pruner.pruner):
            # within a step, which still changes weights and schedule: rewind after it
            self._pending = memory
        else:
            self._restore(memory, trainer, pl_module)

    def on_compact(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: ChannelCut
    ) -> None:
        by_id = {id(parameter): name for name, parameter in parameters(pl_module).items()}
        names = [
            [by_id.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]
            for optimizer in trainer.optimizers
        ]
        for memory in (self._memory, self._fresh):
            if memory is not None:
                memory.resize(plan.slice, names)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if self._pending is not None:
            self._restore(self._pending, trainer, pl_module)
            self._pending = None  # not before: a rewind that failed is not saved
        assert self._clock is not None
        self._maybe_snapshot(trainer, pl_module, self._clock.start_step()[0])

    def state_dict(self) -> dict[str, Any]:
        if self._pending is not None:
            raise StateError(
                "an event waits for its rewind at the end of this batch: save then; if the step "
                "failed, resume from the last checkpoint"
            )
        state: RewindState = {
            "format": FORMAT,
            "parts": list(self.parts),
            "step": self._step,
            "memory": None if self._memory is None else self._memory.state_dict(),
            "fresh": None if self._fresh is None else self._fresh.state_dict(),
        }
        return {**state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("format") != FORMAT or state_dict["parts"] != list(self.parts):
            raise StateError(
                f"the checkpoint's Rewind has format {state_dict.get('format')} and rewinds "
                f"{state_dict.get('parts')}, this one has format {FORMAT} and rewinds "
                f"{list(self.parts)}: write the same what="
            )
        self._step, self._pending = state_dict["step"], None
        self._memory = TrainingSnapshot.loaded(state_dict["memory"])
        self._fresh = TrainingSnapshot.loaded(state_dict["fresh"])

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._clock = None

    def _reset(self) -> None:
        self._timeline = self._step = self._memory = self._fresh = self._pending = None

    def _maybe_snapshot(self, trainer: pl.Trainer, pl_module: pl.LightningModule, now: int) -> None:
        """Copy the state when the step is reached for the first time."""
        assert self._step is not None
        if self._memory is not None or not self.parts or now < self._step:
            return
        self._memory = TrainingSnapshot(**self._rewound(trainer, pl_module))

    def _rewound(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What rewinds, as arguments of `TrainingSnapshot` and its `restore`."""
        rates = "lr" in self.parts
        return {
            "module": pl_module if "weights" in self.parts else None,
            "moments": trainer.optimizers if "optimizer" in self.parts else (),
            "rates": trainer.optimizers if rates else (),
            "schedulers": [c.scheduler for c in trainer.lr_scheduler_configs] if rates else (),
        }

    def _restore(
        self, memory: TrainingSnapshot, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        if self._fresh is not None:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
            self._fresh.restore(moments=trainer.optimizers)
        memory.restore(**self._rewound(trainer, pl_module))
        for callback in pruning_callbacks(trainer):
            callback.pruner.enforce(trainer.optimizers)
        if "weights" in self.parts:
            Averages(trainer).restart(pl_module, int(trainer.global_step))

    def _check(self, trainer: pl.Trainer) -> None:
        """Check, before the first step, that plan and learning-rate schedules can be rewound."""
        pruners = pruning_callbacks(trainer)
        if self._timeline is None or not all(pruner.progress.started for pruner in pruners):
            return
        timeline, self._timeline = self._timeline, None
        assert self._step is not None
        steps = sorted({m.step for pruner in pruners for m in pruner.progress.remaining})
        if steps and steps[0] < self._step and self.parts:
            raise ConfigError(
                f"to={self.to} is step {self._step}, but the first event comes at step "
                f"{steps[0]}, before it: prune later, or write to='0it'"
            )
        if self.scheduled:
            back = self._step - timeline.start if self.parts else None
            check_lr_schedules_fit(trainer, timeline, steps, back)


def make_rewind(rewind: TimeLike | Rewind | None) -> tuple[Rewind, ...]:
    """The child callbacks for the argument `rewind=` of a pruning callback."""
    if rewind is None:
        return ()
    return (rewind if isinstance(rewind, Rewind) else Rewind(rewind),)
