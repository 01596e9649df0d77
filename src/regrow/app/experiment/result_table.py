# SPDX-License-Identifier: MIT
"""Terminal tables of a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("test accuracy", "accuracy", lambda x: f"{100 * x:.2f} %"),
    ("test accuracy, top 5", "accuracy_top5", lambda x: f"{100 * x:.2f} %"),
    ("test loss", "loss", lambda x: f"{x:.4f}"),
    ("parameters", "params", "{:,}".format),
    ("MACs per image", "macs", "{:,}".format),
    ("bytes", "bytes", "{:,}".format),
    ("latency, ms", "latency_ms", lambda x: "{median:.3f} ({p25:.3f} to {p75:.3f})".format(**x)),
)


def result_table(result: dict[str, Any]) -> Table:
    """Return the table of a run."""
    dense, pruned = result["dense"], result["pruned"]
    table = Table("", title=f"{result['recipe']} (seed {result['seed']})")
    for head in ("dense",) if pruned is None else ("dense", "pruned", "change"):
        table.add_column(head, justify="right")
    known = {key for _, key, _ in _ROWS}
    own = [(key, key, "{:.4g}".format) for key in dense if key not in known]
    for label, key, form in (*own, *_ROWS):
        if key in dense:
            row = [label, form(dense[key])]
            if pruned is not None:
                row += [form(pruned[key]), _change(key, dense[key], pruned[key], result["speed"])]
            table.add_row(*row)
    if pruned is not None:
        of = result.get("of", "weights")
        label = "sparsity of the prunable" if of == "weights" else f"sparsity, of {of}"
        table.add_row(label, "0.00 %", f"{100 * result['sparsity']:.2f} %", "")
        table.add_row("sparsity of all", "0.00 %", f"{100 * result['sparsity_total']:.2f} %", "")
    table.caption = result["verdict"]
    return table


def levels_table(result: dict[str, Any]) -> Table:
    """Return the table of accuracy at each trained sparsity."""
    table = Table("sparsity", "epoch", "validation", "test", title="best of each sparsity")
    metric = result.get("metric", "accuracy")
    for level in result["levels"]:
        cells = (level.get("val_accuracy"), level.get("test_accuracy"))
        if metric != "accuracy":
            cells = (level["monitored"], level[f"test_{metric}"])
        unit = (100, ".2f", " %") if metric == "accuracy" else (1, ".4g", "")
        shown = ["-" if c is None else f"{unit[0] * c:{unit[1]}}{unit[2]}" for c in cells]
        table.add_row(f"{100 * level['sparsity']:.2f} %", str(level["epoch"]), *shown)
    return table


def budget_table(result: dict[str, Any]) -> Table:
    """Return the table of the events of an accuracy budget."""
    budget = result["budget"]
    table = Table("epoch", "sparsity", "lost", "outcome", title="accuracy budget")
    for event in budget["judged"]:
        lost = "-" if event["lost"] is None else f"{event['lost']:.4f}"
        outcome = "kept" if event["kept"] else "rolled back"
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


def _change(key: str, dense: Any, pruned: Any, speed: Mapping[str, Any]) -> str:
    if key.startswith("accuracy"):
        return f"{100 * (pruned - dense):+.2f} points"
    if key == "loss":
        return f"{pruned - dense:+.4f}"
    if key == "latency_ms":
        within = speed["verdict"] == "within noise"
        return "within noise" if within else f"{speed['ratio']:.2f}x as fast"
    if isinstance(dense, float):  # another metric
        return f"{pruned - dense:+.4g}"
    return f"{dense / max(1, pruned):.2f}x fewer"
