# SPDX-License-Identifier: MIT
"""A mask update that fails half-way is neither saved nor trained on."""

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
    """Knows whether a change of masks was left incomplete.

    A change is chosen first, which takes most of its memory, and then made. Fails the choice, all
    is as it was. Fails the making, as where memory runs out, nothing is copied to take it back,
    because there is no memory for it: from then on, saving and training raise an error.

    Example:
        >>> changes = Transaction()
        >>> with changes.guard("a try"):
        ...     raise MemoryError
        Traceback (most recent call last):
            ...
        MemoryError
        >>> changes.failed is None  # nothing was touched
        True
    """

    def __init__(self) -> None:
        self.started = 0
        self.failed: str | None = None

    def mark_started(self) -> None:
        """Note that something is about to change."""
        self.started += 1

    def reset(self) -> None:
        """Note that everything was set again."""
        self.failed = None

    def check(self) -> None:
        """Check that the last change was completed.

        Raises:
            StateError: Saying by what, and what to do.
        """
        if self.failed is not None:
            raise StateError(
                f"{self.failed} failed half-way, so masks and weights are of no one moment: they "
                "are neither saved nor trained on: go on from the last checkpoint"
            )

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Around a change: whatever stops it in its middle leaves `failed`."""
        before = self.started
        try:
            yield
        except BaseException:
            if self.started != before and self.failed is None:
                self.failed = what
            raise


def atomic(act: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Makes a method, or a function that takes a pruner first, one change."""

    @wraps(act)
    def done(pruner: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with pruner.enforcer.transaction.guard(act.__name__.strip("_")):
            return act(pruner, *args, **kwargs)

    return cast("Callable[Concatenate[T, P], R]", done)
