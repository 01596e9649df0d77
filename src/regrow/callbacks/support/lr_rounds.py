# SPDX-License-Identifier: MIT
"""Learning-rate schedules that span one round of a fit that rewinds."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import count, pairwise
from typing import Any, TypedDict

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from regrow.callbacks.core.clock import Clock
from regrow.callbacks.core.dispatch import suite_callbacks
from regrow.callbacks.core.pruning_callback import pruning_callbacks
from regrow.schedules.time import Time, Timeline
from regrow.utils.errors import ConfigError, check_choice
from regrow.utils.lightning_classes import pl

# Less than this part of a schedule's range is no change: totals that are off by a step pass.
_SLACK = 1e-3
# What schedulers, torch's and others', call their length, and further arguments in steps.
_LENGTHS = ("T_max", "total_steps", "num_training_steps", "total_iters")
_IN_STEPS = (*_LENGTHS, "milestones", "step_size", "T_0", "step_size_up")


class RoundState(TypedDict):
    """The saved state of `RoundLR`."""

    last_epoch: int  # steps of the schedule, as in LRScheduler
    length: int  # steps of a round
    scheduler: dict[str, Any]  # state of the wrapped one


class RoundLR(LRScheduler):
    """Steps a scheduler for `length` intervals, a round, then holds its learning rate."""

    def __init__(self, scheduler: LRScheduler, length: int, interval: str) -> None:
        # without super().__init__, because `scheduler` has set the first learning rate
        self.scheduler, self.length, self.interval = scheduler, length, interval
        self.optimizer, self.last_epoch = scheduler.optimizer, 0

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch < self.length:
            self.scheduler.step()
            self.last_epoch += 1

    def get_last_lr(self) -> list[Any]:
        return self.scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        inner = self.scheduler.state_dict()
        state: RoundState = {
            "last_epoch": self.last_epoch,
            "length": self.length,
            "scheduler": inner,
        }
        return {**state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch, self.length = state_dict["last_epoch"], state_dict["length"]
        self.scheduler.load_state_dict(state_dict["scheduler"])


def restart_each_round(
    scheduler: Callable[..., LRScheduler],
    optimizer: Optimizer,
    trainer: pl.Trainer,
    *,
    interval: str = "step",
    **settings: Any,
) -> LRScheduler:
    """Create a learning-rate scheduler of one round, which `Rewind` restarts after each event.

    Call it in `configure_optimizers`. A round is the longest interval between two prune events,
    or before the first; after it the learning rate is held. In a fit that does not rewind the
    schedule spans the whole fit.

    Args:
        scheduler: A scheduler's class or a function, called with `optimizer` and, unless it is
            given, its own argument for the length: `T_max`, `total_steps`, `num_training_steps` or
            `total_iters`. A function `(optimizer, total_steps)` may combine several schedulers.
        optimizer: The optimizer.
        trainer: The Trainer of the fit.
        interval: "step" or "epoch": when Lightning steps the scheduler, or under manual
            optimization the module, a batch counting as a step.
        settings: Further arguments of the scheduler.

    Raises:
        ConfigError: For a schedule longer than a round, and a fit of unknown length.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983 (schedules that restart).

    Example:
        >>> from torch.optim.lr_scheduler import CosineAnnealingLR
        >>> class Module(pl.LightningModule):
        ...     def configure_optimizers(self):
        ...         sgd = SGD(self.parameters(), lr=0.1)
        ...         cosine = restart_each_round(CosineAnnealingLR, sgd, self.trainer, eta_min=1e-4)
        ...         return [sgd], [{"scheduler": cosine, "interval": "step"}]
    """
    check_choice("interval", interval, ("step", "epoch"))
    if not callable(scheduler):
        name = type(scheduler).__name__
        raise ConfigError(
            f"scheduler must be a class or a function, got an object: write "
            f"restart_each_round({name}, optimizer, self.trainer)"
        )
    length, rewinds = _schedule_length(trainer, interval)
    given = getattr(scheduler, "keywords", {}) | settings  # of a partial
    argument = _argument_of(scheduler, _LENGTHS)
    if argument is not None and argument not in given:
        settings[argument] = length
    if rewinds:
        _check_within_round(given, length, interval)
    made = scheduler(optimizer, **settings)
    if isinstance(made, ReduceLROnPlateau) or not isinstance(made, LRScheduler):
        raise ConfigError(
            f"{type(made).__name__} is no schedule of steps: write one such as CosineAnnealingLR"
        )
    if isinstance(made, OneCycleLR):
        length -= 1  # its first rate counts as a step, and after the last one it would rise
    return RoundLR(made, length, interval) if rewinds else made


def _check_within_round(settings: Mapping[str, Any], length: int, interval: str) -> None:
    for name, given in settings.items():
        if name in _IN_STEPS and max(given if isinstance(given, Sequence) else [given]) > length:
            raise ConfigError(
                f"{name}={given} is later than the end of a round of {length} {interval}s, at "
                f"which the schedule restarts: write {name} within {length}"
            )


def _schedule_length(trainer: pl.Trainer, interval: str) -> tuple[int, bool]:
    """The steps of a learning-rate schedule, and whether they are those of a round."""
    trainer.fit_loop.setup_data()  # finds out how long an epoch is
    rewinds = any(callback.rewinds for callback in suite_callbacks(trainer))
    rewinds = rewinds and not trainer.fast_dev_run  # type: ignore[attr-defined]
    callbacks = pruning_callbacks(trainer) if rewinds else []
    times = [time for callback in callbacks for time in callback.schedule.times()]
    clock = Clock(trainer, times or [Time(1, "ep")])
    if clock.manual and not clock.batches:
        raise ConfigError(
            "under manual optimisation a scheduler's steps are not those of the optimizers: write "
            "the times of the pruning schedule in epochs or fractions, such as every='10ep'"
        )
    first, epoch = clock.start_step()
    timeline = clock.timeline({epoch: first})
    events = {m.step for c in callbacks for m in c.resolve(timeline, c.sparsity) if m.step > first}
    if not events and timeline.end is None:
        raise ConfigError(
            "a learning-rate schedule needs the length of the fit, which is unknown: write "
            "max_epochs=N or max_steps=N of the Trainer, or leave the schedule out"
        )
    turns = _turns(timeline, interval, sorted(events) or [timeline.end or first])
    # a fit without steps still configures its optimizer
    return max(1, longest_round(turns)), bool(events)


def longest_round(events: Sequence[int], back: int = 0) -> int:
    """The largest number of schedule steps within a round that ends in an event.

    `events` counts the schedule's steps before each event; rounds after the first one begin at
    the schedule's step `back`.
    """
    return max([events[0], *(after - before + back for before, after in pairwise(events))])


def check_lr_schedules_fit(
    trainer: pl.Trainer, timeline: Timeline, steps: Sequence[int], back: int | None
) -> None:
    """Check that learning-rate schedules, at their first step, span one round.

    `steps` are those of the events, `back` is the step, counted from the fit's first one, to which
    schedules rewind; None if they do not and keep their last learning rate.
    """
    first = timeline.start
    steps = [step for step in steps if step > first]
    if not steps or not trainer.lightning_module.automatic_optimization:
        return
    marks = [first + (back or 0), *steps, *([] if timeline.end is None else [timeline.end])]
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if config.reduce_on_plateau:
            continue
        begin, *turns = (n // config.frequency for n in _turns(timeline, config.interval, marks))
        events = turns[: len(steps)]
        if not isinstance(scheduler, LRScheduler):
            rank_zero_warn(
                f"{type(scheduler).__name__} cannot be simulated: check that it spans "
                f"{longest_round(events)} {config.interval}s, a round"
            )
        elif not isinstance(scheduler, RoundLR):
            _check_spans_round(config, events, turns[-1], None if back is None else begin)
        elif (config.interval, config.frequency) != (scheduler.interval, 1):
            raise ConfigError(
                f"restart_each_round has counted {scheduler.interval}s, but Lightning steps the "
                f"scheduler every {config.frequency} {config.interval}s: write "
                f'{{"scheduler": scheduler, "interval": "{scheduler.interval}"}}'
            )


def _check_spans_round(
    config: pl.utilities.types.LRSchedulerConfig, events: Sequence[int], end: int, back: int | None
) -> None:
    """Check one scheduler by simulating it to the end of the fit.

    The range of rates that it would reach there it must reach within a round, because rewinding
    never gets to later steps; and it must not rise again after its end. `events` counts its steps
    before each event, `end` those of the fit, and `back` is the step to which it rewinds, if any.
    """
    name, unit = type(config.scheduler).__name__, config.interval
    span, inside = max(1, longest_round(events)), max(1, longest_round(events, back or 0))
    until = max(inside, end if back is None else end - events[-1] + back)
    interval = "" if unit == "step" else f', interval="{unit}"'
    write = f"regrow.restart_each_round({name}, optimizer, self.trainer, ...{interval})"
    argument = _argument_of(type(config.scheduler), (*_IN_STEPS, "lr_lambda", "gamma"))
    own = f"{argument}={span}" if argument in _LENGTHS else f"{argument} for {span} {unit}s"
    rates = _simulated(config, max(2 * inside, end))
    if len(rates) <= until:
        raise ConfigError(
            f"{name} ends after {len(rates) - 1} {unit}s, and between two rewinds it makes {until}:"
            f" write {write}, which holds its last learning rate"
        )
    for group in zip(*rates, strict=True):
        low, high = min(group), max(group)
        least, most = min(group[: inside + 1]), max(group[: inside + 1])
        slack = _SLACK * (high - low)
        if least > low + slack or most < high - slack:
            raise ConfigError(
                f"{name} continues after one round of {span} {unit}s, to learning rates in "
                f"[{low:.3g}, {high:.3g}] from [{least:.3g}, {most:.3g}] within the round: a fit "
                f"that rewinds would never get there. Its schedule must span one round, not the "
                f"whole fit: write {f'{own}, or ' if argument else ''}{write}"
            )
        if group[span] <= low + slack < max(group[span : until + 1]):
            raise ConfigError(
                f"{name} is at its lowest learning rate after {span} {unit}s, a round, and rises "
                f"again until {unit} {until}, which it reaches before the next rewind: write "
                f"{write}, which holds it"
            )


def _turns(timeline: Timeline, interval: str, steps: Sequence[int]) -> list[int]:
    """How many steps a scheduler makes before steps of the fit; by epoch, one as each ends."""
    if interval == "step":
        return [step - timeline.start for step in steps]
    return [next(n for n in count() if timeline.step(Time(n + 1, "ep")) > step) for step in steps]


def _argument_of(function: Callable[..., object], names: Sequence[str]) -> str | None:
    """The first of some names that a function has as an argument."""
    parameters = inspect.signature(function).parameters
    return next((name for name in names if name in parameters), None)


def _simulated(config: pl.utilities.types.LRSchedulerConfig, steps: int) -> list[list[float]]:
    """The rates at step 0, 1, ... of a copy of the scheduler on a dummy optimizer."""
    scheduler = config.scheduler
    assert isinstance(scheduler, LRScheduler)
    own = [{k: v for k, v in g.items() if k != "params"} for g in scheduler.optimizer.param_groups]
    groups = [g | {"params": [torch.zeros(1, requires_grad=True)]} for g in copy.deepcopy(own)]
    optimizer = SGD(groups, lr=0.1)
    twin = copy.deepcopy(scheduler, {id(scheduler.optimizer): optimizer})
    rates = [[float(group["lr"]) for group in optimizer.param_groups]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer never steps
        for _ in range(steps):
            try:
                twin.step()
            except ValueError:  # OneCycleLR raises after its last step
                break
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
    return rates
