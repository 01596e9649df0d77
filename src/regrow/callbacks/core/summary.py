# SPDX-License-Identifier: MIT
"""What a fit says of its pruning: parameters and zeros at its start, warnings of early ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelSummary, ProgressBar, Timer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.parameter import is_lazy

from regrow.callbacks.core.session import PruningSession
from regrow.masks.zeros import count_zeros, describe_zeros
from regrow.pruning.config import PruningConfig
from regrow.schedules.time import Time, Timeline
from regrow.utils.names import named_parameters


def summary_table(session: PruningSession, name: str) -> Table:
    """One row per pruned parameter, and one per reason why others are not pruned."""
    pruner, config = session.pruner, session.strategy.config
    table = Table(title=f"{name}: {pruner.total:,} prunable weights")
    for column in ("parameter", "shape", "weights", "target"):
        table.add_column(column, justify="left" if column == "parameter" else "right")
    uniform = session.final if config.distribution == "uniform" else None
    for target in pruner.targets:
        shape = "x".join(map(str, target.parameter.shape))
        sparsity = pruner.layer_targets.get(target.name, uniform)
        shown = "shared" if sparsity is None else f"{sparsity:.4g}"
        shown += "" if target.parameter.requires_grad else ", frozen"
        table.add_row(target.name, shape, f"{target.parameter.numel():,}", shown)
    reasons = pruner.state.selection.reasons
    for reason, count in Counter(reasons.values()).items():
        names = [name for name, why in reasons.items() if why == reason]
        shown = ", ".join(names[:2]) + (f" and {count - 2} more" if count > 2 else "")
        table.add_row(f"[dim]{shown}", "", "", f"[dim]dense: {reason}")
    plan = session.progress.remaining
    notes = ["no events planned"]
    if plan:
        notes = [
            f"{len(plan)} event{'s' if len(plan) > 1 else ''}, from step {plan[0].step} to step "
            f"{plan[-1].step}, to sparsity {plan[-1].sparsity:.4g} ({config.distribution})"
        ]
    if session.strategy.keep_removed:
        size = sum(t.parameter.numel() * t.parameter.element_size() for t in pruner.targets)
        most = size * max(session.final, pruner.sparsity) / 2**20
        notes.append(
            f"removed values are stored for unprune: at most {most:.1f} MiB of host memory and of "
            "each checkpoint (keep_removed=False stores none)"
        )
    table.caption = "; ".join(notes)
    return table


def report_prunable(session: PruningSession, name: str) -> None:
    """Log which share of the model may be pruned, and warn where the default leaves much out."""
    selection, config = session.pruner.state.selection, session.strategy.config
    share = selection.prunable / selection.total
    rank_zero_info(
        f"{name}: prunable: {selection.prunable:,} of {selection.total:,} parameters ({share:.1%})"
    )
    if not isinstance(config, PruningConfig) or config.include is not None:
        return
    named = named_parameters(session.pruner.model)
    dense = {
        name: named[name].numel()
        for name, reason in selection.reasons.items()
        if name in named and not is_lazy(named[name]) and not reason.startswith("excluded")
    }
    if sum(dense.values()) > 0.2 * selection.total:
        largest = sorted(dense, key=lambda each: -dense[each])[:3]
        rank_zero_warn(
            f"{name} leaves {sum(dense.values()) / selection.total:.1%} of the parameters dense, "
            f"the largest of them {', '.join(f'{n} ({dense[n]:,})' for n in largest)}: sparsity is "
            f"that of the other {selection.prunable:,}. To prune them too, name them in include=, "
            "beside the layers that are pruned now; to silence this, in exclude="
        )


def print_summary(trainer: pl.Trainer, session: PruningSession, name: str) -> None:
    """Print the table on rank 0, if the Trainer shows a summary or a progress bar."""
    report_prunable(session, name)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    verbose = any(isinstance(c, (ModelSummary, ProgressBar)) for c in callbacks)
    if verbose and trainer.is_global_zero:
        Console().print(summary_table(session, name))


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


def warn_of_zeros(sessions: Sequence[PruningSession]) -> None:
    """Warn if more than 1 % of the weights are zero and not masked: training changes them.

    Vectors are not counted: biases and scales of norms may well be zero at the start.

    Args:
        sessions: Those of all pruning callbacks, after they began or resumed the fit.
    """
    kept: dict[str, list[Tensor]] = {}
    for session in sessions:
        for name, mask in session.pruner.state.working_masks().items():
            kept.setdefault(name, []).append(mask)
    targets = {
        target.name: target
        for session in sessions
        if not _may_have_written_zeros(session)
        for target in session.pruner.targets
        if target.parameter.dim() > 1
    }
    zeros = count_zeros([*targets.values()], kept)
    sizes = {name: target.parameter.numel() for name, target in targets.items()}
    if message := describe_zeros(zeros, sizes):
        rank_zero_warn(message)


def _may_have_written_zeros(session: PruningSession) -> bool:
    """Check whether a resumed event, learned masks or regrowth left zeros outside of masks."""
    pruner = session.pruner
    changes = session.strategy.is_changing(pruner) or pruner.state.returned_weights
    return changes or session.progress.n_done > 0
