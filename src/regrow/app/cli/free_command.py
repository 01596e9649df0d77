# SPDX-License-Identifier: MIT
"""Run `regrow free`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from rich.console import Console
from rich.table import Table

from regrow.app.experiment.free_run import FreeOptions, free_run
from regrow.app.experiment.result import show_result
from regrow.utils.errors import join_limited


def show_free(given: Namespace) -> None:
    """Prune the network of a run's checkpoint as far as it holds, and show what was found."""
    options = FreeOptions(
        given.max_drop, given.of, given.criterion, given.samples, given.include, given.exclude
    )
    result = free_run(given.checkpoint, given.out, options)
    show_result(result)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    console.print(trials_table(result["free"]))
    console.print(describe(result["free"]), soft_wrap=True, markup=False, highlight=False)
    console.print(f"{given.out / result['checkpoint']}", soft_wrap=True, highlight=False)


def trials_table(free: dict[str, Any]) -> Table:
    """Return the table of the networks that the search tried."""
    unit = "" if free["metric"] == "evaluate" else ", %"
    scale = 1 if free["metric"] == "evaluate" else 100
    heads = ("sparsity, %", f"{free['of']} removed, %", f"{free['metric']}{unit}", "holds")
    table = Table(*heads, title="networks that were tried (validation set)")
    for trial in free["trials"]:
        cells = (100 * trial["sparsity"], 100 * trial["removed"], scale * trial["score"])
        table.add_row(*(f"{cell:.2f}" for cell in cells), "yes" if trial["holds"] else "no")
    return table


def describe(free: dict[str, Any]) -> str:
    """Say in a sentence or two what was lost, and where."""
    removed = f"{100 * free['removed']:.1f} % of {free['of']} removed"
    if free["metric"] == "evaluate":
        return f"{removed}: {free['before']:.4g} -> {free['after']:.4g} on the validation set"
    line = (
        f"{removed}: {free['metric']} {100 * free['before']:.2f} -> {100 * free['after']:.2f} % "
        f"on {free['count']:,} validation examples (standard error of the loss "
        f"{100 * free['error']:.2f} points), "
        f"{100 * free['agreement']:.1f} % of the classes as before"
    )
    worst = [(label, loss) for label, loss in free["damage"].items() if loss > 0][:3]
    if not worst:
        return f"{line}. No class is damaged"
    shown = join_limited(f"{label} ({100 * loss:.1f} points)" for label, loss in worst)
    return f"{line}. Most damaged classes: {shown}"
