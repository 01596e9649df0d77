# SPDX-License-Identifier: MIT
"""One warning."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from regrow.report.load import Run

Named = Sequence[tuple[str, Run]]  # runs with the names of their methods


class Advice(NamedTuple):
    """One warning.

    Attributes:
        title: What is unfair.
        found: What was found, with the methods concerned; one sentence a finding.
        todo: What to do.
    """

    title: str
    found: tuple[str, ...]
    todo: str


def listing(items: Iterable[str], most: int = 8) -> str:
    """Words in a row, of very many the first.

    Example:
        >>> listing(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    every = list(items)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def count_of(number: int, word: str) -> str:
    """A number with its word.

    Example:
        >>> count_of(1, "job"), count_of(2, "job")
        ('1 job', '2 jobs')
    """
    return f"{number} {word}{'s' * (number != 1)}"


def who_has_what(runs: Named, value: Callable[[Run], Hashable]) -> dict[Hashable, list[str]]:
    """Each value with the methods that have it, in the order of the runs."""
    found: dict[Hashable, list[str]] = {}
    for name, run in runs:
        names = found.setdefault(value(run), [])
        if name not in names:
            names.append(name)
    return found


def format_groups(found: Mapping[Hashable, list[str]]) -> str:
    """Values and their methods as words.

    Example:
        >>> format_groups({0.1: ["gmp", "imp"], 0.01: ["rigl"]})
        '0.1 (gmp, imp); 0.01 (rigl)'
    """
    parts = [f"{value} ({listing(names)})" for value, names in found.items()]
    return "; ".join(parts[:8]) + (f"; and {len(parts) - 8} more values" * (len(parts) > 8))
