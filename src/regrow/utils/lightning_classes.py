# SPDX-License-Identifier: MIT
"""Classes of Lightning's two distributions, `lightning` and `pytorch_lightning`.

They are copies of each other, and an object of one is no instance of the other's class. The suite's
callbacks are subclasses of both, and `isinstance` checks of Lightning's classes use both.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from lightning_utilities.core import rank_zero

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


@cache
def lightning_classes(name: str) -> tuple[type[Any], ...]:
    """Return the classes of a name in the distributions that are installed, for `isinstance`.

    Args:
        name: Module and class below the package, such as "callbacks.EarlyStopping".

    Example:
        >>> [each.__module__.split(".")[0] for each in lightning_classes("Trainer")]
        ['lightning', 'pytorch_lightning']
    """
    module, _, attribute = name.rpartition(".")
    found = []
    for package in _PACKAGES:
        try:
            with _keep_logger():
                imported = importlib.import_module(f"{package}.{module}".rstrip("."))
        except ImportError:  # pytorch_lightning is optional
            continue
        if (each := getattr(imported, attribute, None)) is not None:
            found.append(each)
    return tuple(found)


@contextmanager
def _keep_logger() -> Iterator[None]:
    """Keep the logger of the distribution that was imported first, where people silence it.

    Each of them, when imported, directs the log lines of both to its own logger.
    """
    before = rank_zero.log
    yield
    if before.name.startswith(_PACKAGES):
        rank_zero.log = before


def overrides(instance: object, hook: str, name: str) -> bool:
    """Whether an object's class defines a method anew that it has of one of Lightning's classes.

    Args:
        instance: The object.
        hook: The method, whether or not Lightning has it.
        name: The class, such as "Callback".

    Example:
        >>> overrides(object(), "on_fit_start", "Callback")
        False
    """
    method = getattr(type(instance), hook, None)
    return method not in (None, *(getattr(c, hook, None) for c in lightning_classes(name)))


def base_class(name: str) -> type:
    """Make a base class that Trainers of both distributions accept as theirs.

    It behaves as the class of `lightning`; of the other one it only has the type.

    Example:
        >>> issubclass(base_class("Callback"), lightning_classes("Callback"))
        True
    """
    first, *others = lightning_classes(name)
    return type(first.__name__, (first, *map(_without_init, others)), {"__module__": __name__})


def _without_init(kind: type) -> type:
    """A subclass whose `__init__` does nothing, because the other distribution's has run."""
    return type(kind.__name__, (kind,), {"__init__": lambda self: None, "__module__": __name__})
