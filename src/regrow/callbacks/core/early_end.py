# SPDX-License-Identifier: MIT
"""Warn of fits that end, or may end, before their last pruning event."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from regrow.callbacks.core.session import PruningSession
from regrow.schedules.time import Time, Timeline


def warn_may_end_early(trainer: pl.Trainer, session: PruningSession) -> None:
    """Warn at the start of callbacks that can stop the fit before its last pruning event."""
    events = [m for m in session.progress.remaining if m.sparsity]
    if not events or session.is_as_sparse(events) or session.time.dry_run:
        return
    last, sparsity = events[-1]
    if _must_reach(trainer, session.timeline, last):
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if name := _stops_early(callback):
            rank_zero_warn(
                f"{name} may end the fit before the last pruning event, at step {last} (sparsity "
                f"{sparsity:.4g}): {_advice(callback, last)}"
            )


def warn_ended_early(
    trainer: pl.Trainer, session: PruningSession, interrupted: BaseException | None = None
) -> None:
    """Warn at the end of a fit whose planned pruning events have not all happened.

    Args:
        trainer: Its Trainer.
        session: Of a pruning callback.
        interrupted: What interrupted the fit; None if it ended by itself. Errors other than
            signals are reported already, and do not warn.
    """
    progress = session.progress
    signal = isinstance(interrupted, KeyboardInterrupt | SIGTERMException)
    if session.current is None or not progress.remaining or (interrupted and not signal):
        return
    sparsity = session.strategy.sparsity(session.current)
    target, count = progress.remaining[-1].sparsity, len(progress.remaining)
    if interrupted is None and not trainer.should_stop:
        rank_zero_warn(
            f"the fit ended at sparsity {sparsity:.4g}, before {count} planned events, the last "
            f"of them to sparsity {target:.4g}. Does the module call step() of a raw optimizer? "
            "Lightning neither counts such steps nor calls hooks on their gradients: use "
            "self.optimizers()"
        )
        return
    events = [milestone for milestone in progress.plan if milestone.sparsity]
    if session.strategy.at_target(session) or (events and session.is_as_sparse(events)):
        return
    missed = sum(1 for milestone in progress.remaining if milestone.sparsity)
    left = f"{missed} planned pruning event{'s' if missed > 1 else ''} did not happen"
    if interrupted is not None:
        cause, advice = type(interrupted).__name__, "resume it with ckpt_path="
    else:
        stopping = [c for c in trainer.callbacks if _has_stopped(c)]  # type: ignore[attr-defined]
        cause = _stops_early(stopping[0]) if stopping else "trainer.should_stop"
        advice = _advice(stopping[0] if stopping else None, events[-1].step)
    rank_zero_warn(
        f"{cause} ended the fit at sparsity {sparsity:.4g} instead of {events[-1].sparsity:.4g}: "
        f"{left}; {advice}"
    )


def _stops_early(callback: pl.Callback) -> str:
    """The name of a callback that stops a fit whatever its sparsity; '' for others."""
    if isinstance(callback, Timer):
        return "max_time"
    waits = getattr(callback, "waits_for_target", False)
    return type(callback).__name__ if isinstance(callback, EarlyStopping) and not waits else ""


def _has_stopped(callback: pl.Callback) -> bool:
    if isinstance(callback, Timer):
        left = callback.time_remaining()
        return left is not None and left <= 0
    return bool(_stops_early(callback)) and getattr(callback, "stopped_epoch", 0) > 0


def _advice(callback: pl.Callback | None, last: int) -> str:
    least = f"Trainer(min_steps={last + 1})"
    if isinstance(callback, Timer):
        return (
            f"write {least}, or a max_steps that the time suffices for, and times of the schedule "
            "that fit into it"
        )
    return f"write SparseEarlyStopping, which waits for the target, or {least}"


def _must_reach(trainer: pl.Trainer, timeline: Timeline, step: int) -> bool:
    """Whether `min_steps` or `min_epochs` keep the fit from stopping before a step."""
    if (trainer.min_steps or 0) > step:
        return True
    known = trainer.min_epochs and timeline.steps_per_epoch is not None
    return bool(known) and timeline.step(Time(trainer.min_epochs or 0, "ep")) > step
