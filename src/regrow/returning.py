# SPDX-License-Identifier: MIT
"""Values of what comes back: nothing is written until all of them are known to be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from regrow.errors import StateError
from regrow.initializers import BY_ROWS, Initializer, Return, original, removed

Make = Callable[[], Return]
"""Makes one parameter's `Return`: the same each time, until the parameter is written to."""


def values_of(initializer: Initializer, makes: Sequence[Make]) -> list[Initializer]:
    """What gives the values of each parameter when it is written to.

    Rules that look at no weight are asked then, so that the values of one parameter are there at a
    time; what they may lack is asked for now. Any other is asked now, and its values at the places
    that come back are held.

    Raises:
        StateError: Where a rule lacks something, or gives another shape.

    Example:
        >>> from regrow.initializers import make_initializer
        >>> back = Return("w", torch.zeros(2), *torch.eye(2, dtype=torch.bool), torch.Generator())
        >>> [values] = values_of(make_initializer("zero"), [lambda: back])
        >>> values(back)
        tensor([0., 0.])
    """
    if initializer not in BY_ROWS:
        return [_held(_checked(initializer, make()), make()) for make in makes]
    if initializer in (removed, original):
        for make in makes:
            _checked(initializer, make())
    return [partial(_checked, initializer)] * len(makes)


def _held(values: Tensor, back: Return) -> Initializer:
    """Gives these values, of which it holds those that come back."""
    held = values.to(back.weight.device, back.weight.dtype)[back.regrown]
    return lambda now: torch.zeros_like(now.weight).masked_scatter_(now.regrown, held)


def _checked(initializer: Initializer, back: Return) -> Tensor:
    values = initializer(back)
    if values.shape != back.weight.shape:
        raise StateError(
            f"the initialiser of {back.name} must give values of shape "
            f"{tuple(back.weight.shape)}, got {tuple(values.shape)}"
        )
    return values
