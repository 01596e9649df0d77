# SPDX-License-Identifier: MIT
"""Names and sizes as tables of a terminal show them."""

from __future__ import annotations

from collections.abc import Sequence


def shorten_names(names: Sequence[str], width: int) -> list[str]:
    """Shorten long names so that all stay distinct.

    The beginning is left out, or a part in the middle where the ends of two names are equal. Names
    that cannot be told apart within the width stay whole.
    """
    width = max(width, 12)
    for start in range(width - 4):
        shortened = [_shorten(name, width, start) for name in names]
        if len({*shortened}) == len({*names}):
            return shortened
    return list(names)


def _shorten(name: str, width: int, start: int) -> str:
    """Keep `start` characters and as much of the end as fits; the end begins at a dot if near."""
    if len(name) <= width:
        return name
    end = name[start + 1 - width :]
    dot = end.find(".")
    return f"{name[:start]}…{end[dot:] if 0 <= dot < len(end) // 3 else end}"


def shorten_column(
    rows: Sequence[Sequence[str]], heads: Sequence[str], width: int
) -> list[list[str]]:
    """Shorten the names in the first cells of rows, so that the table is at most `width` wide."""
    others = [max(map(len, column)) for column in list(zip(heads, *rows, strict=True))[1:]]
    left = width - sum(others) - 3 * len(heads) - 1
    names = shorten_names([row[0] for row in rows], left)
    return [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Write rows of cells below each other, one line each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def format_bytes(count: float) -> str:
    """Format a number of bytes.

    Example:
        >>> format_bytes(900), format_bytes(57_600), format_bytes(102_400_000)
        ('900 B', '56.2 KiB', '97.7 MiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
