# SPDX-License-Identifier: MIT
"""Certainty: too few seeds, and methods whose intervals overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from regrow.report.advice import Advice
from regrow.report.hover import percent
from regrow.report.points import Point, Series

ENOUGH = 3
_NEAR = 0.02  # two densities within this fraction of each other are compared


def uncertain(series: Sequence[Series]) -> list[Advice]:
    """What the seeds of one task do not allow to say."""
    return [*_few_seeds(series), *_overlapping(series)]


def near(one: Point, other: Point) -> bool:
    """Whether two points have about the same sparsity of the same thing.

    The densities decide: 98 and 98.5 % are far apart, 30 and 30.5 % are not.
    """
    if one.rows[0].values["of"] != other.rows[0].values["of"]:
        return False
    less, more = sorted(1 - point.x["sparsity"].mean for point in (one, other))
    return more - less <= _NEAR * more


def _few_seeds(series: Sequence[Series]) -> Iterator[Advice]:
    few = tuple(
        f"{one.name} at {_at(point)}: {len(point.seeds)}."
        for one in series
        for point in one.points
        if len(point.seeds) < ENOUGH
    )
    if few:
        todo = "Add seeds, seed=0,1,2: finished jobs are not run again."
        yield Advice("Fewer than three seeds", few, todo)


def _overlapping(series: Sequence[Series]) -> Iterator[Advice]:
    """Pairs of methods that cannot be told apart where they meet."""
    pairs = [
        (a.x["sparsity"].mean, f"At {_at(a)}: {_told(one, a)} and {_told(other, b)}.")
        for one, other in combinations(series, 2)
        for a in one.points
        for b in other.points
        if near(a, b) and a.y["accuracy"].overlaps(b.y["accuracy"])
    ]
    if pairs:
        yield Advice(
            "Cannot be told apart: the intervals mean ± standard deviation overlap",
            tuple(text for _, text in sorted(pairs)),
            "Do not rank these: say that they are level, or add seeds (seed=0,1,2,3,4).",
        )


def _told(series: Series, point: Point) -> str:
    return f"{series.name} {percent(point.y['accuracy'])}"


def _at(point: Point) -> str:
    return f"{100 * point.x['sparsity'].mean:.4g} %"
