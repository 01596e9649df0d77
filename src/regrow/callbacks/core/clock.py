# SPDX-License-Identifier: MIT
"""Count the steps of a fit and find its epochs and its end."""

from __future__ import annotations

import math
from collections.abc import Iterable

from regrow.callbacks.core.averaging import trained_epochs
from regrow.schedules.time import Time, Timeline
from regrow.utils.errors import ConfigError
from regrow.utils.lightning_classes import lightning_classes, pl


class Clock:
    """Count optimizer steps, or batches under manual optimization where times allow it.

    With automatic optimization a window of accumulated batches makes one step, which
    `trainer.global_step` counts. With manual optimization a batch may make any number of steps, so
    epochs and fractions are counted in batches, "500it" in `trainer.global_step`.

    Args:
        trainer: The Trainer of a fit.
        times: The times to schedule.

    Raises:
        ConfigError: For mixed units under manual optimization.
    """

    def __init__(self, trainer: pl.Trainer, times: Iterable[Time]) -> None:
        self.trainer = trainer
        self.manual = not trainer.lightning_module.automatic_optimization
        units = {time.unit for time in times if time.amount}
        self.batches = self.manual and not units <= {"it"}
        if self.batches and "it" in units:
            raise ConfigError(
                "under manual optimisation one batch may make several optimizer steps, so '500it' "
                "cannot be mixed with '3ep' or fractions: write all times in one of them"
            )

    def current_step(self) -> int:
        """The number of steps (or batches) done; call it while a batch is trained."""
        if self.batches:
            return int(self.trainer.fit_loop.epoch_loop.total_batch_idx)
        return int(self.trainer.global_step)

    def position(self) -> tuple[int, int]:
        """`global_step` and `current_epoch` of the Trainer, for the history."""
        return int(self.trainer.global_step), int(self.trainer.current_epoch)

    @property
    def dry_run(self) -> bool:
        """Whether the fit has a single step, as with `fast_dev_run`."""
        return bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]

    def start_step(self) -> tuple[int, int]:
        """The step (or batch) and epoch at which training continues; call it between batches."""
        step = self.current_step() + 1 if self.batches else self.current_step()
        return step, int(self.trainer.current_epoch)

    def timeline(self, first: int, epoch: int) -> Timeline:
        """The epochs and the end of a fit that began at step `first`, in `epoch`."""
        trainer = self.trainer
        limit = trainer.max_steps - first if trainer.max_steps != -1 else None
        if self.manual and not self.batches:
            return Timeline(limit, None, first)
        most = trained_epochs(trainer)
        epochs = None if most is None or most == -1 else max(0, most - epoch)
        if self.batches and limit is not None:  # it counts optimizer steps, any number a batch
            limit = epochs = None
        if math.isinf(trainer.num_training_batches):
            return Timeline(limit, None, first)
        spans = self._spans(int(trainer.num_training_batches), epoch)
        total = None if epochs is None else Timeline(None, spans).step(Time(epochs, "ep"))
        known = [length for length in (total, limit) if length is not None]
        return Timeline(min(known) if known else None, spans, first)

    def _spans(self, batches: int, first: int) -> tuple[tuple[int, int], ...]:
        """(epoch since `first`, steps per epoch from then on), with changes of accumulation."""
        factors = {0: 1 if self.manual else self.trainer.accumulate_grad_batches}
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, lightning_classes("callbacks.GradientAccumulationScheduler")):
                for epoch, factor in sorted(callback.scheduling.items()):
                    factors[max(0, epoch - first)] = factor
        return tuple((epoch, math.ceil(batches / by)) for epoch, by in sorted(factors.items()))
