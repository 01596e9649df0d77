# SPDX-License-Identifier: MIT
"""Mask updates as transactions: a partly failed one can be neither saved nor trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from regrow.utils.errors import StateError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Transaction:
    """Records whether a mask update failed after its first change.

    An update first selects weights, which needs most of its memory, and then changes masks. An
    error in the selection changes nothing. After an error in the changes, such as running out of
    memory, nothing is rolled back, because that would need memory too: saving and training raise
    an error from then on.
    """

    def __init__(self) -> None:
        self.started = 0
        self.failed: str | None = None

    def mark_started(self) -> None:
        """Record that a change begins."""
        self.started += 1

    def reset(self) -> None:
        """Record that all masks and weights were set again."""
        self.failed = None

    def check(self) -> None:
        """Raise `StateError` if the last update was not completed."""
        if self.failed is not None:
            raise StateError(
                f"{self.failed} failed half-way, so masks and weights do not match and can be "
                "neither saved nor trained on: resume from the last checkpoint"
            )

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Run an update; an error after its first change sets `failed`."""
        before = self.started
        try:
            yield
        except BaseException:
            if self.started != before and self.failed is None:
                self.failed = what
            raise


def atomic(act: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Decorate a method of a pruner, or a function of one, to run as a transaction."""

    @wraps(act)
    def guarded(pruner: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with pruner.enforcer.transaction.guard(act.__name__.strip("_")):
            return act(pruner, *args, **kwargs)

    return cast("Callable[Concatenate[T, P], R]", guarded)
