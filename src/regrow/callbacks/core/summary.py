# SPDX-License-Identifier: MIT
"""What is printed when a fit starts: the pruned parameters, and zeros that no mask covers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.parameter import is_lazy

from regrow.callbacks.core.session import PruningSession
from regrow.masks.zeros import count_zeros, describe_zeros
from regrow.pruning.config import PruningConfig
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
