# SPDX-License-Identifier: MIT
"""Plot."""

from __future__ import annotations

import colorsys
import importlib.util
import io
from pathlib import Path
from typing import Any

from regrow.io.files import write_atomic
from regrow.sensitivity_analysis.recommend import limit, ranked
from regrow.sensitivity_analysis.scan import Sensitivities, Sensitivity
from regrow.sensitivity_analysis.scan_options import ScanOptions
from regrow.sensitivity_analysis.scan_table import in_points
from regrow.utils.imports import import_optional

_WHAT = "the plot of sensitivities"


# plotly 7 would offer to upload the chart
_CONFIG = {"displaylogo": False, "showSendToCloud": False}


_MANY = 12  # lines; more get thinner, and no legend in a picture


def draw(found: Sensitivities, options: ScanOptions, table: Path) -> str:
    """Draws one line a layer beside the table: a page, else a picture, else says what to install.

    Returns:
        The file's name, or what is missing.
    """
    if importlib.util.find_spec("plotly") is not None:
        path = table.with_suffix(".html")
        text = _page(found, options)
    elif importlib.util.find_spec("matplotlib") is not None:
        path = table.with_suffix(".svg")
        text = _picture(found, options)
    else:
        return 'no plot, which needs plotly: pip install "regrow[report]"'
    write_atomic(path, lambda file: file.write(text.encode()))
    return path.name


def _points(row: Sensitivity, found: Sensitivities) -> tuple[list[float], list[float]]:
    """From what is there to the sparsest; percents."""
    beyond = {s: a for s, a in row.accuracy.items() if s > row.sparsity}
    points = {row.sparsity: found.accuracy} | beyond
    return [100 * s for s in points], [100 * a for a in points.values()]


def _title(found: Sensitivities, options: ScanOptions) -> str:
    what = "group of channels" if options.by == "channels" else "layer"
    return f"One {what} pruned at a time, not trained ({options.checkpoint.name})"


def _colours(found: Sensitivities) -> dict[str, str]:
    """Colors from the first layer (blue) to the last (red)."""
    count = max(1, len(found.rows) - 1)
    shades = [colorsys.hls_to_rgb(0.62 * (1 - i / count), 0.45, 0.65) for i in range(count + 1)]
    codes = ["#" + "".join(f"{round(255 * part):02x}" for part in shade) for shade in shades]
    return {row.name: code for row, code in zip(found.rows, codes, strict=False)}


def _page(found: Sensitivities, options: ScanOptions) -> str:
    plotly: Any = import_optional(_WHAT, "report", "plotly.graph_objects")
    figure, colours = plotly.Figure(), _colours(found)
    for row in ranked(found, options.max_drop):
        x, y = _points(row, found)
        best = limit(row, found.accuracy, options.max_drop)
        macs = "" if row.macs is None else f", {row.macs:.1%} of MACs"
        size = f"{row.size:,} {options.by}, {row.params:.1%} of parameters{macs}"
        figure.add_scatter(
            x=x,
            y=y,
            name=row.name,
            mode="lines+markers",
            line={"color": colours[row.name], "width": 2 if len(found.rows) <= _MANY else 1},
            hovertemplate=f"<b>{row.name}</b><br>sparsity %{{x:.4g}} %, accuracy %{{y:.2f}} %<br>"
            f"{size}<br>holds {best:.4g}<extra></extra>",
        )
    lowest = 100 * (found.accuracy - options.max_drop)
    figure.add_hline(y=lowest, line_dash="dash", line_color="grey")
    figure.update_layout(
        title=_title(found, options),
        xaxis_title="sparsity of the layer, %",
        yaxis_title=f"validation accuracy, % (dashed: {in_points(options.max_drop)} less)",
        template="plotly_white",
        hovermode="closest",
        legend={"title": {"text": "hardest to harm first"}},
    )
    page: str = figure.to_html(include_plotlyjs=True, config=_CONFIG)
    return page


def _picture(found: Sensitivities, options: ScanOptions) -> str:
    matplotlib: Any = import_optional(_WHAT, "plots", "matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = import_optional(_WHAT, "plots", "matplotlib.pyplot")
    colours, lines = _colours(found), io.StringIO()
    with pyplot.rc_context({"svg.hashsalt": "regrow"}):
        figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
        for row in ranked(found, options.max_drop):
            width = 1.6 if len(found.rows) <= _MANY else 0.8
            x, y = _points(row, found)
            axes.plot(x, y, label=row.name, color=colours[row.name], linewidth=width, marker=".")
        axes.axhline(100 * (found.accuracy - options.max_drop), color="grey", linestyle="--")
        axes.set(
            title=_title(found, options),
            xlabel="sparsity of the layer, %",
            ylabel=f"validation accuracy, % (dashed: {in_points(options.max_drop)} less)",
        )
        if len(found.rows) <= _MANY:
            axes.legend(fontsize="small")
        figure.savefig(
            lines, format="svg", facecolor="white", metadata={"Date": None, "Creator": None}
        )
        pyplot.close(figure)
    return lines.getvalue()
