# SPDX-License-Identifier: MIT
"""What a fit says of its pruning: parameters and zeros at its start, warnings of early ends."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from lightning_utilities.core import rank_zero
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from rich.console import Console, Group
from rich.table import Table
from torch import Tensor
from torch.nn.parameter import is_lazy

from regrow.callbacks.core.dispatch import suite_callbacks
from regrow.callbacks.core.session import PruningSession
from regrow.masks.distributions import DISTRIBUTIONS, LayerSize
from regrow.masks.zeros import count_zeros, describe_zeros
from regrow.pruning.config import PruningConfig
from regrow.schedules.base import PruningPlan
from regrow.schedules.time import Time, Timeline
from regrow.utils.display import format_bytes, shorten_column
from regrow.utils.lightning_classes import lightning_classes, pl
from regrow.utils.names import named_parameters

_TIMER = lightning_classes("callbacks.Timer")
_EARLY_STOPPING = lightning_classes("callbacks.EarlyStopping")
_SIGTERM = lightning_classes("utilities.exceptions.SIGTERMException")


def render_summary(
    session: PruningSession, name: str, width: int = 200, macs: Mapping[str, float] | None = None
) -> Group:
    """Make a table of the pruned parameters; below it the plan, and what stays dense.

    `macs` are multiply-accumulates per weight and image, by parameter; None: no such column.
    """
    pruner = session.pruner
    heads = ["parameter", "shape", "weights", "target"]
    if macs is not None:
        heads.insert(3, "MACs per image")
    table = Table(title=f"{name}: {pruner.total:,} prunable weights")
    for head in heads:
        table.add_column(head, justify="left" if head == "parameter" else "right", overflow="fold")
    sparsities, rows = _layer_sparsities(session), []
    for target in pruner.targets:
        shape = "x".join(map(str, target.parameter.shape))
        sparsity, weights = sparsities.get(target.name), target.parameter.numel()
        shown = "by rank" if sparsity is None else f"{sparsity:.4g}"
        shown += "" if target.parameter.requires_grad else ", frozen"
        row = [target.name, shape, f"{weights:,}", shown]
        if macs is not None:
            row.insert(3, f"{weights * macs.get(target.name, 0):,.0f}")
        rows.append(row)
    for row in shorten_column(rows, heads, width):
        table.add_row(*row)
    return Group(table, *_notes(session))


def _layer_sparsities(session: PruningSession) -> dict[str, float]:
    """Return the final sparsities that do not depend on the weights."""
    pruner, sparsities = session.pruner, dict(session.pruner.layer_targets)
    distribution = session.strategy.config.distribution
    if distribution not in ("uniform", "erk"):
        return sparsities
    free = [target for target in pruner.targets if target.name not in sparsities]
    layers = [LayerSize(t.name, tuple(t.parameter.shape), t.parameter.numel()) for t in free]
    for pool in DISTRIBUTIONS[distribution](layers, session.final):
        [index] = pool.layers
        sparsities[layers[index].name] = pool.pruned / layers[index].units
    return sparsities


def _notes(session: PruningSession) -> Iterator[str]:
    """Yield the plan, what is stored, and which parameters stay dense."""
    pruner, plan = session.pruner, session.progress.remaining
    if plan:
        yield (
            f"{len(plan)} event{'s' if len(plan) > 1 else ''}, from step {plan[0].step} to step "
            f"{plan[-1].step}, to {session.strategy.unit} {plan[-1].sparsity:.4g} "
            f"({session.strategy.config.distribution})"
        )
    else:
        yield "no events planned"
    if session.strategy.keep_removed:
        size = sum(t.parameter.numel() * t.parameter.element_size() for t in pruner.targets)
        share = session.final if session.strategy.unit == "sparsity" else 1.0
        most = format_bytes(size * max(share, pruner.sparsity))
        yield (
            f"removed values are stored for unprune: at most {most} of host memory and of "
            "each checkpoint (keep_removed=False stores none)"
        )
    reasons, named = pruner.state.selection.reasons, named_parameters(pruner.model)
    counts: Counter[str] = Counter()
    for name, reason in reasons.items():
        built = name in named and not is_lazy(named[name])
        counts[reason.rpartition(": ")[2]] += named[name].numel() if built else 0
    if reasons:
        yield (
            f"dense: {counts.total():,} weights of {len(reasons)} parameters: "
            + ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        )


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
    """Print the table on rank 0, unless Lightning's log lines are silenced."""
    report_prunable(session, name)
    if trainer.is_global_zero and rank_zero.log.isEnabledFor(logging.INFO):
        console = Console()
        console.print(render_summary(session, name, console.width))


def report_moved_events(session: PruningSession, before: PruningPlan) -> None:
    """Log where the events to come are now, and warn if the fit seems to end before the last."""
    now, end = session.progress.remaining, session.timeline.end
    if now != before:
        rank_zero_info(
            f"the length of epochs has changed: {len(now)} pruning events are left, the last at "
            f"step {now[-1].step} (it was step {before[-1].step})"
        )
    if end is not None and now[-1].step >= end:
        rank_zero_warn(
            f"the length of epochs has changed: if it stays so, the fit ends before step {end}, "
            f"and the last pruning event, at step {now[-1].step}, never comes: write an earlier "
            "time, or train longer"
        )


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
                f"{name} may end the fit before the last pruning event, at step {last} "
                f"({session.strategy.unit} {sparsity:.4g}): {_advice(callback, last)}"
            )


def warn_ended_early(
    trainer: pl.Trainer,
    session: PruningSession,
    interrupted: BaseException | None = None,
    searching: str | None = None,
) -> None:
    """Warn at the end of a fit whose planned pruning events have not all happened.

    Errors other than signals are reported already, and do not warn. A callback that searches for a
    sparsity calls this after its last rollback, and `searching` says whether its search was open
    ("": it was not); the call of the pruning callback then does nothing.
    """
    progress = session.progress
    searches = any(callback.searches_sparsity for callback in suite_callbacks(trainer))
    if searches and searching is None and interrupted is None:
        return
    signal = isinstance(interrupted, (KeyboardInterrupt, *_SIGTERM))
    if session.current is None or not progress.remaining or (interrupted and not signal):
        return
    sparsity, unit = session.strategy.sparsity(session.current), session.strategy.unit
    target, count = progress.remaining[-1].sparsity, len(progress.remaining)
    if interrupted is None and not trainer.should_stop:
        missed_step = progress.remaining[0].step
        cause = searching or session.time.why_missed(missed_step, progress.epochs)
        rank_zero_warn(
            f"the fit ended at sparsity {sparsity:.4g}, before {count} planned events, the last "
            f"of them to {unit} {target:.4g}: {cause}"
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
    wanted = "instead of" if unit == "sparsity" else "before threshold"
    rank_zero_warn(
        f"{cause} ended the fit at sparsity {sparsity:.4g} {wanted} {events[-1].sparsity:.4g}: "
        f"{left}; {advice}"
    )


def _stops_early(callback: pl.Callback) -> str:
    """The name of a callback that stops a fit whatever its sparsity; '' for others."""
    if isinstance(callback, _TIMER):
        return "max_time"
    waits = getattr(callback, "waits_for_target", False)
    return type(callback).__name__ if isinstance(callback, _EARLY_STOPPING) and not waits else ""


def _has_stopped(callback: pl.Callback) -> bool:
    if isinstance(callback, _TIMER):
        left = callback.time_remaining()
        return left is not None and left <= 0
    return bool(_stops_early(callback)) and getattr(callback, "stopped_epoch", 0) > 0


def _advice(callback: pl.Callback | None, last: int) -> str:
    least = f"Trainer(min_steps={last + 1})"
    if isinstance(callback, _TIMER):
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
