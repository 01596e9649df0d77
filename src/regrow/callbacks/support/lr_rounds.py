# SPDX-License-Identifier: MIT
"""Length of a rewinding round, and the check that learning-rate schedules span one round."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from itertools import pairwise

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

from regrow.callbacks.core.clock import Clock
from regrow.callbacks.core.pruning_callback import pruning_callbacks
from regrow.schedules.time import Time, Timeline
from regrow.utils.errors import ConfigError
from regrow.utils.lightning_classes import pl

# Less than this part of a schedule's range is no change: totals that are off by a step pass.
_SLACK = 1e-3


def longest_round(steps: Sequence[int], first: int, back: int = 0) -> int:
    """The largest number of schedule steps within a round that ends in an event.

    Args:
        steps: The steps of the events, increasing.
        first: The step at which the fit begins.
        back: The schedule's step at which the rounds after the first one begin.

    Example:
        >>> longest_round([100, 200, 300], first=0), longest_round([100, 200], first=0, back=10)
        (100, 110)
    """
    stretches = [after - before + back for before, after in pairwise(steps)]
    return max([steps[0] - first, *stretches]) if steps else 0


def round_length(trainer: pl.Trainer) -> int | None:
    """The optimizer steps of a round, in `configure_optimizers`; None if there are no rounds."""
    _ = trainer.estimated_stepping_batches  # lets Lightning find out how long an epoch is
    steps, first = set[int](), 0
    for callback in pruning_callbacks(trainer):
        clock = Clock(trainer, callback.schedule.times())
        first, epoch = clock.start_step()
        if not clock.manual and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            steps |= {m.step for m in callback.resolve(clock.timeline(first, epoch))}
    return longest_round(sorted(steps), first) or None


def check_lr_schedules_fit(
    trainer: pl.Trainer, timeline: Timeline, steps: Sequence[int], back: int
) -> None:
    """Check that learning-rate schedules span one round.

    Each schedule is simulated to the end of the fit: the range of rates that it would reach there
    it must reach within a round, because rewinding never gets to later steps.

    Args:
        trainer: Its schedulers are at their first step.
        timeline: Of the fit.
        steps: The steps of the events, increasing.
        back: The step, from the fit's first one, to which the schedule rewinds.

    Raises:
        ConfigError: With the number of steps that the schedule should have.
    """
    reach = longest_round(steps, timeline.start, back)
    if not reach or not trainer.lightning_module.automatic_optimization:
        return
    last = 0 if timeline.end is None else timeline.end - steps[-1] + back
    span = longest_round(steps, timeline.start)
    for config in trainer.lr_scheduler_configs:
        name = type(config.scheduler).__name__
        if config.reduce_on_plateau:
            continue
        if not isinstance(config.scheduler, LRScheduler):
            rank_zero_warn(f"{name} cannot be simulated: check that it spans {span} steps, a round")
            continue
        unit = config.frequency * (1 if config.interval == "step" else _epoch(timeline))
        turns = math.ceil(reach / unit)
        write = (
            f"write total_steps={span}" if unit == 1 else f"write T_max={math.ceil(span / unit)}"
        )
        rates = _simulated(config, max(2 * turns, math.ceil((timeline.total or 0) / unit)))
        if len(rates) <= max(turns, last // unit):
            raise ConfigError(
                f"{name} ends after {len(rates) - 1} steps, but a round that rewinds to step "
                f"{back} reaches step {max(turns, last // unit)} of it: give it more steps, or "
                "use one that stays at its last learning rate (all of regrow's do)"
            )
        for group in zip(*rates, strict=True):
            low, high, inside = min(group), max(group), group[: turns + 1]
            slack = _SLACK * (high - low)
            if min(inside) > low + slack or max(inside) < high - slack:
                raise ConfigError(
                    f"{name} continues after one round of {span} steps, to learning rates in "
                    f"[{low:.3g}, {high:.3g}] from [{min(inside):.3g}, {max(inside):.3g}] within "
                    f"the round: a fit that rewinds would never get there. A schedule must span "
                    f"one round: {write}, not of the whole fit"
                )


def _epoch(timeline: Timeline) -> int:
    """Optimizer steps of an epoch; Lightning steps an epoch's scheduler at its end."""
    return timeline.length(Time(1, "ep"))


def _simulated(config: pl.utilities.types.LRSchedulerConfig, count: int) -> list[list[float]]:
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
        for _ in range(count):
            try:
                twin.step()
            except ValueError:  # OneCycleLR raises after its last step
                break
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
    return rates
