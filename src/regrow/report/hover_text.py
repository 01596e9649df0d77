# SPDX-License-Identifier: MIT
"""Hover texts."""

from __future__ import annotations

import textwrap
from html import escape

from regrow.report.statistics import Point, Spread

_WIDE = 64


_LINES = 4


def point_text(name: str, point: Point) -> str:
    """Lines of a pruned point: method, accuracy, size, speed, overrides, seeds."""
    values = point.rows[0].values
    lines = [f"<b>{escape(name)}</b>", f"top-1 {percent(point.y['accuracy'])}"]
    if "accuracy_top5" in point.y:
        lines.append(f"top-5 {percent(point.y['accuracy_top5'])}")
    lines.append(f"{change(point.y['accuracy_drop'])} against dense")
    lines.append(f"sparsity {100 * point.x['sparsity'].mean:.2f} % ({escape(str(values['of']))})")
    if "compression" in point.x:
        lines.append(f"{point.x['compression'].mean:.2f}x fewer parameters")
    if "macs" in point.x:
        lines.append(f"{point.x['macs'].mean:,.0f} MACs an image")
    if "latency" in point.x:
        lines.append(f"latency {point.x['latency'].mean:.3f} ms")
    lines += wrapped(f"overrides: {_overrides(point)}")
    lines += wrapped(f"seeds: {', '.join(map(str, point.seeds))}")
    return "<br>".join(lines)


def dense_text(names: list[str], point: Point) -> str:
    """Lines of a dense control, and which methods it belongs to."""
    lines = [f"<b>dense control</b>, top-1 {percent(point.y['accuracy'])}"]
    if "accuracy_top5" in point.y:
        lines.append(f"top-5 {percent(point.y['accuracy_top5'])}")
    lines.append(f"{point.x['macs'].mean:,.0f} MACs an image")
    if "latency" in point.x:
        lines.append(f"latency {point.x['latency'].mean:.3f} ms")
    return "<br>".join([*lines, *wrapped(f"of: {', '.join(names)}")])


def percent(found: Spread) -> str:
    """A fraction with its spread, as per cent.

    Example:
        >>> percent(Spread(0.8837, 0.0017, 3)), percent(Spread(0.9, None, 1))
        ('88.37 ± 0.17 % (n = 3)', '90.00 % (n = 1)')
    """
    spread = "" if found.deviation is None else f" ± {100 * found.deviation:.2f}"
    return f"{100 * found.mean:.2f}{spread} % (n = {found.n})"


def change(found: Spread) -> str:
    """A change of accuracy in points.

    Example:
        >>> change(Spread(-0.0144, 0.001, 3))
        '-1.44 ± 0.10 points'
    """
    spread = "" if found.deviation is None else f" ± {100 * found.deviation:.2f}"
    return f"{100 * found.mean:+.2f}{spread} points"


def wrapped(text: str) -> list[str]:
    """Escaped lines that are not too wide, and not too many."""
    lines = textwrap.wrap(text, _WIDE, max_lines=_LINES, placeholder=" …")
    return [escape(line) for line in lines]


def _overrides(point: Point) -> str:
    """What all runs of a point were given, but for the seed."""
    given = [word for word in point.rows[0].run.overrides if not word.startswith("seed=")]
    return " ".join(given) or "none"
