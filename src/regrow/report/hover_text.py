# SPDX-License-Identifier: MIT
"""Texts shown when the pointer is over a point of the plot."""

from __future__ import annotations

import textwrap
from html import escape

from regrow.report.statistics import Point, Spread


def point_text(point: Point) -> str:
    """Describe a pruned point: method, accuracy, size, speed, overrides, seeds."""
    lines = [f"<b>{escape(point.methods[0])}</b>", *_accuracy_lines(point)]
    lines.append(f"{format_change(point.y['accuracy_drop'])} against dense")
    unit = escape(str(point.run.result["of"]))
    lines.append(f"sparsity {100 * point.x['sparsity'].mean:.2f} % ({unit})")
    if "compression" in point.x:
        lines.append(f"{point.x['compression'].mean:.2f}x fewer parameters")
    lines += _cost_lines(point)
    overrides = [word for word in point.run.overrides if not word.startswith("seed=")]
    lines += wrap_escaped(f"overrides: {' '.join(overrides) or 'none'}")
    return "<br>".join([*lines, *wrap_escaped(f"seeds: {', '.join(map(str, point.seeds))}")])


def dense_text(point: Point) -> str:
    """Describe a dense baseline, with the methods that are compared with it."""
    first, *more = _accuracy_lines(point)
    lines = [f"<b>dense baseline</b>, {first}", *more, *_cost_lines(point)]
    return "<br>".join([*lines, *wrap_escaped(f"of: {', '.join(point.methods)}")])


def _accuracy_lines(point: Point) -> list[str]:
    names = {"top-1": "accuracy", "top-5": "accuracy_top5"}
    return [f"{k} {format_percent(point.y[name])}" for k, name in names.items() if name in point.y]


def _cost_lines(point: Point) -> list[str]:
    lines = [f"{point.x['macs'].mean:,.0f} MACs per image"] if "macs" in point.x else []
    return lines + ([f"latency {point.x['latency'].mean:.3f} ms"] if "latency" in point.x else [])


def format_percent(value: Spread) -> str:
    """Format a fraction with its standard deviation, in per cent.

    Example:
        >>> format_percent(Spread(0.8837, 0.0017, 3)), format_percent(Spread(0.9, None, 1))
        ('88.37 ± 0.17 % (n = 3)', '90.00 % (n = 1)')
    """
    deviation = "" if value.deviation is None else f" ± {100 * value.deviation:.2f}"
    return f"{100 * value.mean:.2f}{deviation} % (n = {value.n})"


def format_change(value: Spread) -> str:
    """Format a change of accuracy, in percentage points.

    Example:
        >>> format_change(Spread(-0.0144, 0.001, 3))
        '-1.44 ± 0.10 points'
    """
    deviation = "" if value.deviation is None else f" ± {100 * value.deviation:.2f}"
    return f"{100 * value.mean:+.2f}{deviation} points"


def wrap_escaped(text: str) -> list[str]:
    """Wrap a text into at most four lines of 64 characters, and escape them for HTML."""
    return [escape(line) for line in textwrap.wrap(text, 64, max_lines=4, placeholder=" …")]
