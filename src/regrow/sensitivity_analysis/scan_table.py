# SPDX-License-Identifier: MIT
"""Terminal table and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from regrow.io.files import write_atomic
from regrow.sensitivity_analysis.recommend import Recommendation, limit, ranked
from regrow.sensitivity_analysis.scan import DEFAULT_CRITERIA, Sensitivities, Sensitivity
from regrow.sensitivity_analysis.scan_options import ScanOptions


def in_points(fraction: float) -> str:
    """A difference of accuracies in words.

    Example:
        >>> in_points(0.01), in_points(1 / 144)
        ('1 point', '0.694 points')
    """
    points = f"{100 * fraction:.3g}"
    return f"{points} point" + "s" * (points != "1")


def sensitivity_table(
    found: Sensitivities, options: ScanOptions, samples: int, remarks: Sequence[str] = ()
) -> Table:
    """One row a layer, those first that can be pruned hardest."""
    pruned = any(row.sparsity for row in found.rows)
    points = in_points(options.max_drop)
    what = "group" if options.by == "channels" else "layer"
    table = Table(
        title=f"accuracy in %, one {what} pruned at a time, not trained; "
        f"as it is {100 * found.accuracy:.2f}"
    )
    table.add_column(what, overflow="fold")
    heads = [options.by, "% params", "% MACs", *(["now"] if pruned else [])]
    heads += [f"{sparsity:.4g}" for sparsity in options.sparsities]
    for head in (*heads, "holds"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in ranked(found, options.max_drop):
        cells = [f"{row.size:,}", f"{100 * row.params:.1f}"]
        cells.append("-" if row.macs is None else f"{100 * row.macs:.1f}")
        cells += [f"{row.sparsity:.4g}"] if pruned else []
        cells += [_cell(row, sparsity, found, options) for sparsity in options.sparsities]
        best = limit(row, found.accuracy, options.max_drop)
        table.add_row(row.name, *cells, f"{best:.4g}" if best else "none")
    one = 1 / max(1, samples)
    said = [
        f"holds: the highest sparsity that loses {points} at most, and no lower one more",
        f"{samples:,} validation samples, of which one is {in_points(one)}; never the test "
        "set, on which nothing may be chosen",
        f"ranked by {options.criterion or DEFAULT_CRITERIA[options.by]} within each",
        *remarks,
    ]
    if one > options.max_drop:
        said.append(f"too few samples to tell {points}")
    if options.by == "channels":
        said.append("a weight between two groups counts for both; channels are zeroed, not cut")
    table.caption = "; ".join(said)
    return table


def next_words(
    found: Sensitivities, step: Recommendation, options: ScanOptions, together: float | None
) -> str:
    """What could be pruned next, in words that can be pasted."""
    points = in_points(options.max_drop)
    if not step.layers:
        return f"nothing loses less than {points}: lower --sparsities, or raise --max-drop"
    lines = [f"where to begin (each within {points} alone; together they cost more: fine-tune):"]
    excluded = ",".join(step.exclude)
    if options.by == "weights":
        held = sum(row.size * step.layers.get(row.name, 0.0) for row in found.rows)
        share = held / sum(row.size for row in found.rows)
        own = ",".join(f"{name}:{sparsity:.6g}" for name, sparsity in step.layers.items())
        words = f"'pruning.layers={{{own}}}'"
        lines.append(f"  {words}" + (f" 'pruning.exclude=[{excluded}]'" if excluded else ""))
        python = f"layers={_rounded(step.layers)}"
        python += f", exclude={step.exclude}" if excluded else ""
        lines.append(f"  MagnitudePruning({python})")
        if together is not None:
            lines.append(
                f"  all of this at once, not trained: sparsity {share:.4f}, {together:.2%}"
            )
    elif excluded:
        lines.append(f"  'pruning.exclude=[{excluded}]'")
        lines.append(f"  ChannelPruning(exclude={step.exclude})")
    else:
        lines.append("  every group can lose some: no group needs to be excluded")
    return "\n".join(lines)


def write_csv(found: Sensitivities, options: ScanOptions) -> Path:
    """The table as CSV, fractions unrounded, in the order of the model."""
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    within = f"within_{options.max_drop:g}"
    accuracies = [f"accuracy_at_{sparsity:g}" for sparsity in options.sparsities]
    shares = ["weights_held", "share_of_params", "share_of_macs"]
    now = ["sparsity_now", "accuracy_now"]
    writer.writerow(["layer", options.by, *shares, *now, *accuracies, within])
    for row in found.rows:
        values = [row.accuracy[sparsity] for sparsity in options.sparsities]
        best = limit(row, found.accuracy, options.max_drop)
        macs = "" if row.macs is None else row.macs
        head = [row.name, row.size, row.weights, row.params, macs, row.sparsity, found.accuracy]
        writer.writerow([*head, *values, best])
    name = "sensitivity.csv" if options.by == "weights" else "sensitivity_channels.csv"
    path = options.out / name
    write_atomic(path, lambda file: file.write(lines.getvalue().encode()))
    return path


def _cell(row: Sensitivity, sparsity: float, found: Sensitivities, options: ScanOptions) -> str:
    accuracy = row.accuracy[sparsity]
    if row.sparsity >= sparsity:
        return "[dim]pruned"
    colour = "green" if limit(row, found.accuracy, options.max_drop) >= sparsity else "red"
    return f"[{colour}]{100 * accuracy:.2f}"


def _rounded(layers: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{sparsity:.6g}") for name, sparsity in layers.items()}
