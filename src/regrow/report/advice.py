# SPDX-License-Identifier: MIT
"""Warnings about comparisons, and helpers that format their findings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from regrow.report.load import Run

NamedRuns = Sequence[tuple[str, Run]]  # runs with the names of their methods


class Advice(NamedTuple):
    """One warning."""

    title: str  # what makes the comparison unfair
    findings: tuple[str, ...]  # one sentence each, with the methods concerned
    todo: str


def join_limited(items: Iterable[str], limit: int = 8) -> str:
    """Join at most `limit` items by commas.

    Example:
        >>> join_limited(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def count_of(number: int, noun: str) -> str:
    """Format a number with its noun.

    Example:
        >>> count_of(1, "job"), count_of(2, "job")
        ('1 job', '2 jobs')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def names_by_value(runs: NamedRuns, value: Callable[[Run], Hashable]) -> dict[Hashable, list[str]]:
    """Map each value to the names of the methods that have it, in the order of the runs."""
    names: dict[Hashable, dict[str, None]] = {}
    for name, run in runs:
        names.setdefault(value(run), {})[name] = None
    return {key: list(group) for key, group in names.items()}


def format_groups(groups: Mapping[Hashable, Iterable[str]]) -> str:
    """Format values and their methods.

    Example:
        >>> format_groups({0.1: ["gmp", "imp"], 0.01: ["rigl"]})
        '0.1 (gmp, imp); 0.01 (rigl)'
    """
    parts = [f"{value} ({join_limited(names)})" for value, names in groups.items()]
    return "; ".join(parts[:8]) + (f"; and {len(parts) - 8} more values" * (len(parts) > 8))
