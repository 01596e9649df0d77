# SPDX-License-Identifier: MIT
"""Count the steps of a fit and find its epochs and its end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

from regrow.callbacks.core.averaging import trained_epochs
from regrow.schedules.time import Time, Timeline
from regrow.utils.errors import ConfigError, check_count
from regrow.utils.lightning_classes import lightning_classes, pl


class Clock:
    """Count optimizer steps, or batches under manual optimization where `times` allow it.

    With automatic optimization a window of accumulated batches makes one step, which
    `trainer.global_step` counts. With manual optimization a batch may make any number of steps, so
    epochs and fractions are counted in batches, "500it" in `trainer.global_step`.
    """

    def __init__(self, trainer: pl.Trainer, times: Iterable[Time]) -> None:
        self.trainer = trainer
        self.manual = not trainer.lightning_module.automatic_optimization
        times = [time for time in times if time.amount]
        units = {time.unit for time in times}
        self.batches = self.manual and not units <= {"it"}
        if self.batches and "it" in units:
            raise ConfigError(
                "under manual optimisation one batch may make several optimizer steps, so steps "
                "cannot be mixed with epochs and fractions, and the times are "
                f"{', '.join(map(str, times))}: write all of them (begin, end, every, at) as "
                "'500it', or none"
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

    def timeline(self, epochs: Mapping[int, int]) -> Timeline:
        """The fit, by the first step of each epoch; those to come are as long as this one."""
        trainer, starts, epoch = self.trainer, [*epochs.values()], max(epochs)
        first = starts[0]
        limit = trainer.max_steps - first if trainer.max_steps != -1 else None
        if self.manual and not self.batches:
            return Timeline(limit, None, first)
        most = trained_epochs(trainer)
        left = None if most is None or most == -1 else max(0, most - epoch)
        if self.batches and limit is not None:  # it counts optimizer steps, any number a batch
            limit = left = None
        if math.isinf(trainer.num_training_batches):
            return Timeline(limit, None, first)
        done = [after - before for before, after in pairwise(starts)]
        batches = int(trainer.num_training_batches)
        lengths = [*enumerate(done)]
        for since, window in self._windows(epoch).items():
            lengths.append((len(done) + since, math.ceil(batches / window)))
        spans = tuple(s for k, s in enumerate(lengths) if not k or s[1] != lengths[k - 1][1])
        total = None if left is None else Timeline(None, spans).step(Time(len(done) + left, "ep"))
        known = [length for length in (total, limit) if length is not None]
        return Timeline(min(known) if known else None, spans, first)

    def validations(self, epochs: Mapping[int, int]) -> list[float]:
        """The number of steps done at each validation from the beginning of the present epoch on.

        Validations count batches, so with accumulation they also come within a step: 4.5 is in the
        middle of the fifth. Empty if the length of epochs or of the fit is unknown.
        """
        trainer, timeline, epoch = self.trainer, self.timeline(epochs), max(epochs)
        if timeline.end is None or timeline.steps_per_epoch is None:
            return []
        batches, every = int(trainer.num_training_batches), trainer.check_val_every_n_epoch
        interval = trainer.val_check_batch
        between = interval if isinstance(interval, int) else batches  # at the end of an epoch
        across = every is None and between == interval  # counts batches across epochs
        loop, windows, found = trainer.fit_loop.epoch_loop, self._windows(epoch), list[float]()
        before, ahead = loop.total_batch_idx - loop.batch_idx, 0  # batches of earlier epochs
        while (begin := timeline.step(Time(len(epochs) - 1 + ahead, "ep"))) < timeline.end:
            window = windows[max(since for since in windows if since <= ahead)]
            first = between - (before % between if across else 0)
            if every is None or (epoch + ahead + 1) % every == 0:
                for batch in range(first, batches + 1, between):
                    done = batch / window if batch < batches else math.ceil(batch / window)
                    found.append(begin + done)
            before, ahead = before + batches, ahead + 1
        return [step for step in found if step <= timeline.end]

    def why_missed(self, step: int, epochs: Mapping[int, int]) -> str:
        """The likely cause why a fit that has ended by itself missed an event at a step."""
        timeline, (now, _) = self.timeline(epochs), self.start_step()
        done, total = now - timeline.start, timeline.total
        if step >= now and (self.batches or not self.manual):
            early = total is not None and done < total
            return (
                f"its last epoch ended early, after {done} steps instead of {total}: write an "
                "earlier time"
                if early
                else f"epochs became shorter, and it had only {done} steps: write an earlier time"
            )
        if not self.manual:
            return (
                "it was due, but another callback (an AccuracyBudget that still judges?) delayed "
                "it, or no gradients were computed: write an earlier time"
            )
        return (
            "does the module call step() of a raw optimizer? Lightning neither counts such steps "
            "nor calls hooks on their gradients: use self.optimizers()"
        )

    def _windows(self, first: int) -> dict[int, int]:
        """Batches per step, by the number of epochs since `first` from which on they hold."""
        accumulated = self.trainer.accumulate_grad_batches
        windows = {0: 1 if self.manual else check_count("accumulate_grad_batches", accumulated)}
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, lightning_classes("callbacks.GradientAccumulationScheduler")):
                for epoch, factor in sorted(callback.scheduling.items()):
                    windows[max(0, epoch - first)] = factor
        return dict(sorted(windows.items()))
