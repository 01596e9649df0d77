# SPDX-License-Identifier: MIT
"""Run `regrow recipes`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from regrow.app.config.recipes import ABOUT, load, recipe_files
from regrow.utils.errors import ConfigError, suggest


def show(words: Sequence[str]) -> None:
    """Print the recipes that contain every word: one table for each data and model."""
    tables: dict[str, Table] = {}
    for name, path in recipe_files().items():
        about = dict.fromkeys(ABOUT, "-") | {
            str(key): str(value) for key, value in load(path).about.items() if value is not None
        }
        if not all(word.lower() in f"{name} {' '.join(about.values())}".lower() for word in words):
            continue
        title = f"{about['data']}, {about['model']}"
        if title not in tables:
            tables[title] = Table("recipe", "method", "published", "source", title=title)
            tables[title].columns[0].no_wrap = True
        tables[title].add_row(name, about["method"], about["published"], about["source"])
    if not tables:
        given = " ".join(words)
        raise ConfigError(f"No recipe matches {given!r}: {suggest(given, recipe_files())}")
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width: keep a recipe on one line, for grep
    for table in tables.values():
        table.box, table.title_justify, table.pad_edge = None, "left", False
        console.print(table, end="\n\n")
