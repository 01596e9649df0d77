# SPDX-License-Identifier: MIT
"""Hooks that `torch.compile` does not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(hook: Callable[P, R]) -> Callable[P, R]:
    """Runs a hook as plain Python, even where it is called within a compiled optimizer step.

    Lightning runs forward, backward and the hooks between them inside `optimizer.step`. What an
    event does differs from event to event, so a compiled step would be compiled anew for each.

    Example:
        >>> uncompiled(len)("abc")
        3
    """
    return cast(Callable[P, R], torch.compiler.disable(hook))  # type: ignore[no-untyped-call]
