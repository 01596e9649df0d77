# SPDX-License-Identifier: MIT
"""Format sensitivities as a terminal table, a recommendation and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from regrow.io.files import write_text
from regrow.sensitivity_analysis.recommend import Recommendation, find_limit, sort_by_limit
from regrow.sensitivity_analysis.scan import DEFAULT_CRITERIA, Sensitivities, Sensitivity
from regrow.sensitivity_analysis.scan_options import ScanOptions
from regrow.utils.display import shorten_column


def format_points(fraction: float) -> str:
    """Format a difference of accuracies in percentage points."""
    points = f"{100 * fraction:.3g}"
    return f"{points} point" + "s" * (points != "1")


def sensitivity_table(
    found: Sensitivities,
    options: ScanOptions,
    samples: int,
    remarks: Sequence[str] = (),
    width: int = 200,
) -> Table:
    """Make a table with one row per layer, those with the highest limit first, and notes."""
    pruned = any(row.sparsity for row in found.rows)
    points = format_points(options.max_drop)
    unit = "group" if options.by == "channels" else "layer"
    table = Table(
        title=f"accuracy in %, one {unit} pruned at a time, no fine-tuning; "
        f"unchanged {100 * found.accuracy:.2f}"
    )
    table.add_column(unit, overflow="fold")
    heads = [options.by, "% params", "% MACs", *(["now"] if pruned else [])]
    heads += [f"{sparsity:.4g}" for sparsity in options.sparsities]
    for head in (*heads, "limit"):
        table.add_column(head, justify="right", no_wrap=True)
    rows = []
    for row in sort_by_limit(found, options.max_drop):
        cells = [f"{row.size:,}", f"{100 * row.params:.1f}"]
        cells.append("-" if row.macs is None else f"{100 * row.macs:.1f}")
        cells += [f"{row.sparsity:.4g}"] if pruned else []
        cells += [_cell(row, sparsity, found, options) for sparsity in options.sparsities]
        best = find_limit(row, found.accuracy, options.max_drop)
        rows.append([row.name, *cells, f"{best:.4g}" if best else "none"])
    for shown in shorten_column(rows, [unit, *heads, "limit"], width):
        table.add_row(*shown)
    one = 1 / max(1, samples)
    notes = [
        f"limit: the highest sparsity that, like all lower ones, loses at most {points}",
        f"{samples:,} validation samples, of which one is {format_points(one)}; no test data",
        f"ranked by {options.criterion or DEFAULT_CRITERIA[options.by]} within each {unit}",
        *remarks,
    ]
    if one > options.max_drop:
        notes.append(f"too few samples to resolve {points}")
    if options.by == "channels":
        notes.append("a weight between two groups counts for both; channels are zeroed, not cut")
    table.caption = "; ".join(notes)
    return table


def format_recommendation(
    found: Sensitivities, step: Recommendation, options: ScanOptions, together: float | None
) -> str:
    """Format a recommendation as overrides and arguments that can be pasted."""
    points = format_points(options.max_drop)
    if not step.layers:
        return f"every layer loses more than {points}: lower --sparsities, or raise --max-drop"
    lines = [f"start with (each alone loses at most {points}, together more; then fine-tune):"]
    excluded = ",".join(step.exclude)
    if options.by == "weights":
        layers = {name: float(f"{sparsity:.6g}") for name, sparsity in step.layers.items()}
        override = ",".join(f"{name}:{sparsity:.6g}" for name, sparsity in layers.items())
        exclude = f" 'pruning.exclude=[{excluded}]'" if excluded else ""
        lines.append(f"  'pruning.layers={{{override}}}'{exclude}")
        exclude = f", exclude={step.exclude}" if excluded else ""
        lines.append(f"  MagnitudePruning(layers={layers}{exclude})")
        if together is not None:
            pruned = sum(row.size * step.layers.get(row.name, 0.0) for row in found.rows)
            sparsity = pruned / sum(row.size for row in found.rows)
            lines.append(
                f"  all of these together, no fine-tuning: sparsity {sparsity:.4f}, {together:.2%}"
            )
    elif excluded:
        lines.append(f"  'pruning.exclude=[{excluded}]'")
        lines.append(f"  ChannelPruning(exclude={step.exclude})")
    else:
        lines.append("  no group needs to be excluded")
    return "\n".join(lines)


def write_csv(found: Sensitivities, options: ScanOptions) -> Path:
    """Write the table as CSV: unrounded fractions, in the order of the model."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    accuracies = [f"accuracy_at_{sparsity:g}" for sparsity in options.sparsities]
    shares = ["weights_held", "share_of_params", "share_of_macs"]
    now, within = ["sparsity_now", "accuracy_now"], f"within_{options.max_drop:g}"
    writer.writerow(["layer", options.by, *shares, *now, *accuracies, within])
    for row in found.rows:
        values = [row.accuracy[sparsity] for sparsity in options.sparsities]
        best = find_limit(row, found.accuracy, options.max_drop)
        head = [row.name, row.size, row.weights, row.params, row.macs, row.sparsity]
        writer.writerow([*head, found.accuracy, *values, best])  # None is written as ""
    name = "sensitivity.csv" if options.by == "weights" else "sensitivity_channels.csv"
    path = options.out / name
    write_text(path, text.getvalue())
    return path


def _cell(row: Sensitivity, sparsity: float, found: Sensitivities, options: ScanOptions) -> str:
    accuracy = row.accuracy[sparsity]
    if row.sparsity >= sparsity:
        return "[dim]pruned"
    colour = "green" if find_limit(row, found.accuracy, options.max_drop) >= sparsity else "red"
    return f"[{colour}]{100 * accuracy:.2f}"
