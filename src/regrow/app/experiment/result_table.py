# SPDX-License-Identifier: MIT
"""Terminal tables of a result."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def result_table(result: dict[str, Any]) -> Table:
    """Return the table of a run."""
    dense, pruned = result["dense"], result["pruned"]
    table = Table(title=f"{result['recipe']} (seed {result['seed']})")
    table.add_column("")
    table.add_column("dense", justify="right")
    if pruned is not None:
        table.add_column("pruned", justify="right")
        table.add_column("change", justify="right")
    for label, key, form in (
        ("test accuracy", "accuracy", lambda x: f"{100 * x:.2f} %"),
        ("test accuracy, top 5", "accuracy_top5", lambda x: f"{100 * x:.2f} %"),
        ("test loss", "loss", lambda x: f"{x:.4f}"),
        ("parameters", "params", lambda x: f"{x:,}"),
        ("MACs an image", "macs", lambda x: f"{x:,}"),
        ("bytes", "bytes", lambda x: f"{x:,}"),
        ("latency, ms", "latency_ms", _format_latency),
    ):
        if key not in dense:
            continue
        row = [label, form(dense[key])]
        if pruned is not None:
            row += [form(pruned[key]), _change(key, dense[key], pruned[key])]
        table.add_row(*row)
    if pruned is not None:
        sparsity = f"{100 * result['sparsity']:.2f} %"
        of = result.get("of", "weights")
        label = "sparsity of the prunable" if of == "weights" else f"sparsity, of {of}"
        table.add_row(label, "0.00 %", sparsity, "")
        table.add_row("sparsity of all", "0.00 %", f"{100 * result['sparsity_total']:.2f} %", "")
    table.caption = result["verdict"]
    return table


def levels_table(result: dict[str, Any]) -> Table:
    """Return the table of accuracy at each trained sparsity."""
    table = Table("sparsity", "epoch", "validation", "test", title="levels")
    for level in result["levels"]:
        cells = (level.get("val_accuracy"), level.get("test_accuracy"))
        shown = ["-" if cell is None else f"{100 * cell:.2f} %" for cell in cells]
        table.add_row(f"{100 * level['sparsity']:.2f} %", str(level["epoch"]), *shown)
    return table


def budget_table(result: dict[str, Any]) -> Table:
    """Return the table of the events of an accuracy budget."""
    budget = result["budget"]
    table = Table("epoch", "sparsity", "lost", "outcome", title="accuracy budget")
    for event in budget["judged"]:
        lost = "-" if event["lost"] is None else f"{event['lost']:.4f}"
        outcome = "kept" if event["held"] else "rolled back"
        table.add_row(str(event["epoch"]), f"{100 * event['sparsity']:.2f} %", lost, outcome)
    table.caption = budget["reason"]
    return table


def show_result(result: dict[str, Any]) -> None:
    """Print all tables of a result."""
    console = Console()
    if result.get("budget"):
        console.print(budget_table(result))
    if len(result["levels"]) > 1:
        console.print(levels_table(result))
    console.print(result_table(result))


def _format_latency(latency: dict[str, Any]) -> str:
    return f"{latency['median']:.3f} ({latency['p25']:.3f} to {latency['p75']:.3f})"


def _change(key: str, dense: Any, pruned: Any) -> str:
    if key.startswith("accuracy"):
        return f"{100 * (pruned - dense):+.2f} points"
    if key == "loss":
        return f"{pruned - dense:+.4f}"
    if key == "latency_ms":
        return f"{dense['median'] / pruned['median']:.2f}x as fast"
    return f"{dense / max(1, pruned):.2f}x fewer"
