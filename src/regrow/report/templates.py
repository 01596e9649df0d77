# SPDX-License-Identifier: MIT
"""Jinja templates of the page, and how they format values."""

from __future__ import annotations

import functools
import textwrap
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from regrow.report.statistics import Spread
from regrow.utils.imports import import_optional

if TYPE_CHECKING:
    from jinja2 import Template


def read_asset(name: str) -> str:
    """Read a file that is part of the page."""
    return (files("regrow.report") / "assets" / name).read_text(encoding="utf-8")


@functools.cache
def load_template(name: str) -> Template:
    """Load a template, which escapes all values for HTML.

    Raises:
        ConfigError: If jinja2 is not installed.
    """
    jinja2 = import_optional("the page of the report", "report", "jinja2")
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, **options)
    environment.filters |= {"percent": format_percent, "points": format_points}
    environment.filters["wrap"] = lambda text: jinja2.utils.markupsafe.Markup(wrap_escaped(text))
    environment.tests["seed"] = lambda override: override.startswith("seed=")
    template: Template = environment.from_string(read_asset(name))
    return template


def format_percent(value: Spread) -> str:
    """Format a fraction with its standard deviation, in per cent.

    Example:
        >>> format_percent(Spread(0.8837, 0.0017, 3)), format_percent(Spread(0.9, None, 1))
        ('88.37 ± 0.17 % (n = 3)', '90.00 % (n = 1)')
    """
    return f"{100 * value.mean:.2f}{_format_deviation(value)} % (n = {value.n})"


def format_points(value: Spread) -> str:
    """Format a change of accuracy, in percentage points.

    Example:
        >>> format_points(Spread(-0.0144, 0.001, 3))
        '-1.44 ± 0.10 points'
    """
    return f"{100 * value.mean:+.2f}{_format_deviation(value)} points"


def _format_deviation(value: Spread) -> str:
    return "" if value.deviation is None else f" ± {100 * value.deviation:.2f}"


def wrap_escaped(text: str) -> str:
    """Wrap a text into at most four lines of 64 characters, each after a `<br>`, as HTML."""
    lines = textwrap.wrap(text, 64, max_lines=4, placeholder=" …")
    return "".join(f"<br>{escape(line)}" for line in lines)
