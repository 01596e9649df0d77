# SPDX-License-Identifier: MIT
"""Plot accuracy against sparsity, one line per layer."""

from __future__ import annotations

import colorsys
import importlib.util
import io
from pathlib import Path
from typing import Any

from regrow.io.files import write_text
from regrow.sensitivity_analysis.recommend import find_limit, sort_by_limit
from regrow.sensitivity_analysis.scan import Sensitivities, Sensitivity
from regrow.sensitivity_analysis.scan_options import ScanOptions
from regrow.sensitivity_analysis.scan_table import format_points
from regrow.utils.imports import import_optional

_PURPOSE = "the plot of sensitivities"
_CONFIG = {"displaylogo": False, "showSendToCloud": False}  # plotly 7 offers to upload charts
_MAX_LINES = 12  # more lines are thinner, and an SVG has no legend for them


def write_plot(found: Sensitivities, options: ScanOptions, table: Path) -> str:
    """Write a plot beside the table, HTML by plotly or SVG by matplotlib; return its name."""
    if importlib.util.find_spec("plotly") is not None:
        path = table.with_suffix(".html")
        text = _page(found, options)
    elif importlib.util.find_spec("matplotlib") is not None:
        path = table.with_suffix(".svg")
        text = _picture(found, options)
    else:
        return 'no plot: it needs plotly, pip install "regrow[report]"'
    write_text(path, text)
    return path.name


def _points(row: Sensitivity, found: Sensitivities) -> tuple[list[float], list[float]]:
    """Return sparsities and accuracies in per cent, from the present sparsity on."""
    higher = {s: a for s, a in row.accuracy.items() if s > row.sparsity}
    points = {row.sparsity: found.accuracy} | higher
    return [100 * s for s in points], [100 * a for a in points.values()]


def _labels(options: ScanOptions) -> tuple[str, str, str]:
    """Return the title of the plot and of its two axes."""
    unit = "group of channels" if options.by == "channels" else "layer"
    return (
        f"One {unit} pruned at a time, no fine-tuning ({options.checkpoint.name})",
        "sparsity of the layer, %",
        f"validation accuracy, % (dashed: {format_points(options.max_drop)} less)",
    )


def _colours(found: Sensitivities) -> dict[str, str]:
    """Return a colour for each layer, from blue (first) to red (last)."""
    count = max(1, len(found.rows) - 1)
    shades = [colorsys.hls_to_rgb(0.62 * (1 - i / count), 0.45, 0.65) for i in range(count + 1)]
    codes = ["#" + "".join(f"{round(255 * part):02x}" for part in shade) for shade in shades]
    return {row.name: code for row, code in zip(found.rows, codes, strict=False)}


def _page(found: Sensitivities, options: ScanOptions) -> str:
    plotly: Any = import_optional(_PURPOSE, "report", "plotly.graph_objects")
    figure, colours, (title, x_title, y_title) = plotly.Figure(), _colours(found), _labels(options)
    for row in sort_by_limit(found, options.max_drop):
        x, y = _points(row, found)
        best = find_limit(row, found.accuracy, options.max_drop)
        macs = "" if row.macs is None else f", {row.macs:.1%} of MACs"
        size = f"{row.size:,} {options.by}, {row.params:.1%} of parameters{macs}"
        figure.add_scatter(
            x=x,
            y=y,
            name=row.name,
            mode="lines+markers",
            line={"color": colours[row.name], "width": 2 if len(found.rows) <= _MAX_LINES else 1},
            hovertemplate=f"<b>{row.name}</b><br>sparsity %{{x:.4g}} %, accuracy %{{y:.2f}} %<br>"
            f"{size}<br>limit {best:.4g}<extra></extra>",
        )
    lowest = 100 * (found.accuracy - options.max_drop)
    figure.add_hline(y=lowest, line_dash="dash", line_color="grey")
    figure.update_layout(
        title=title,
        xaxis_title=x_title,
        yaxis_title=y_title,
        template="plotly_white",
        hovermode="closest",
        legend={"title": {"text": "highest limit first"}},
    )
    page: str = figure.to_html(include_plotlyjs=True, config=_CONFIG)
    return page


def _picture(found: Sensitivities, options: ScanOptions) -> str:
    matplotlib: Any = import_optional(_PURPOSE, "plots", "matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = import_optional(_PURPOSE, "plots", "matplotlib.pyplot")
    colours, text = _colours(found), io.StringIO()
    with pyplot.rc_context({"svg.hashsalt": "regrow"}):
        figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
        for row in sort_by_limit(found, options.max_drop):
            width = 1.6 if len(found.rows) <= _MAX_LINES else 0.8
            x, y = _points(row, found)
            axes.plot(x, y, label=row.name, color=colours[row.name], linewidth=width, marker=".")
        axes.axhline(100 * (found.accuracy - options.max_drop), color="grey", linestyle="--")
        axes.set(**dict(zip(("title", "xlabel", "ylabel"), _labels(options), strict=True)))
        if len(found.rows) <= _MAX_LINES:
            axes.legend(fontsize="small")
        metadata = {"Date": None, "Creator": None}
        figure.savefig(text, format="svg", facecolor="white", metadata=metadata)
        pyplot.close(figure)
    return text.getvalue()
