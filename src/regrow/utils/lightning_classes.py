# SPDX-License-Identifier: MIT
"""The only import of Lightning, from whichever of its two distributions is installed.

`lightning` and `pytorch_lightning` are copies of each other, and an object of one is no instance of
the other's class. The suite's callbacks are subclasses of both, and `isinstance` checks of
Lightning's classes use both, so that callbacks follow the Trainer that they are given. All else
uses `pl`: `lightning.pytorch`, or `pytorch_lightning` where that is installed alone.
"""

from __future__ import annotations

import importlib
from functools import cache
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lightning_utilities.core import rank_zero

__all__ = ["LightningCallback", "base_class", "lightning_classes", "overrides", "pl"]


def _import_installed() -> list[ModuleType]:
    """Import the distributions that are installed.

    Each of them, when imported, directs the log lines of both to its own logger: they are left with
    the one that was imported first, where people silence them.
    """
    found = []
    for name in ("lightning.pytorch", "pytorch_lightning"):
        before = rank_zero.log
        try:
            found.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
        if before.name.startswith(("lightning.", "pytorch_lightning.")):
            rank_zero.log = before
    if not found:
        raise ImportError("regrow's callbacks need Lightning: pip install lightning")
    return found


_DISTRIBUTIONS = _import_installed()
if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = _DISTRIBUTIONS[0]


@cache
def lightning_classes(name: str) -> tuple[type[Any], ...]:
    """Return the classes of a name in the distributions that are installed, for `isinstance`.

    The name is relative to the package, such as "callbacks.EarlyStopping". A class that the
    installed version lacks has no instances, and is left out.
    """
    module, _, attribute = name.rpartition(".")
    modules = [attrgetter(module)(each) if module else each for each in _DISTRIBUTIONS]
    return tuple(getattr(each, attribute) for each in modules if hasattr(each, attribute))


def overrides(instance: object, hook: str, name: str) -> bool:
    """Whether an object's class defines a method anew that Lightning's class `name` may have."""
    method = getattr(type(instance), hook, None)
    return method not in (None, *(getattr(c, hook, None) for c in lightning_classes(name)))


def base_class(name: str) -> type:
    """Make a base class that Trainers of both distributions accept as theirs.

    It behaves as the class of `pl`; of the other one it only has the type.
    """
    first, *others = lightning_classes(name)
    return type(first.__name__, (first, *map(_without_init, others)), {"__module__": __name__})


def _without_init(kind: type) -> type:
    """A subclass whose `__init__` does nothing, because the other distribution's has run."""
    return type(kind.__name__, (kind,), {"__init__": lambda self: None, "__module__": __name__})


if TYPE_CHECKING:
    LightningCallback = pl.Callback
else:
    LightningCallback = base_class("Callback")
