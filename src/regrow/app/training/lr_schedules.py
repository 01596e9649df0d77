# SPDX-License-Identifier: MIT
"""Constant, linear, cosine and multistep learning-rate schedules with warm-up.

Each is a `LambdaLR` whose factor depends on the optimizer step only, so that a resumed or rewound
fit has the same learning rates. Their arguments:

- `optimizer`: the optimizer whose learning rates are set.
- `total_steps`: optimizer steps of the fit, or of one rewinding round.
- `warmup`: fraction of the fit with a linear warm-up.
- `final`: factor of the learning rate after `total_steps`, at least 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from regrow.utils.errors import ConfigError, check_count, check_positive


def constant(optimizer: Optimizer, total_steps: int, warmup: float = 0.0) -> LambdaLR:
    """Keep the learning rate of the optimizer after the warm-up.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> constant(sgd, 100, warmup=0.1).get_last_lr()
        [0.010000000000000002]
    """
    return _make_schedule(optimizer, total_steps, warmup, lambda step, done: 1.0)


def linear(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.0, final: float = 0.0
) -> LambdaLR:
    """Decay linearly to `final` times the learning rate.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> linear(sgd, 100).lr_lambdas[0](50)
        0.5
    """
    final = _check_factor("final", final)
    return _make_schedule(optimizer, total_steps, warmup, lambda step, done: 1 + (final - 1) * done)


def cosine(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.0, final: float = 0.0
) -> LambdaLR:
    """Decay along half a cosine to `final` times the learning rate.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> cosine(sgd, 100).lr_lambdas[0](100)
        0.0
    """
    final = _check_factor("final", final)

    def factor(step: int, done: float) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    return _make_schedule(optimizer, total_steps, warmup, factor)


def multistep(
    optimizer: Optimizer,
    total_steps: int,
    milestones: Sequence[float] = (0.5, 0.75),
    gamma: float = 0.1,
    warmup: float = 0.0,
    of: float = 1.0,
) -> LambdaLR:
    """Multiply the learning rate by `gamma` (at least 0) at each milestone.

    Milestones are increasing fractions of the fit, warm-up included. `of` divides them and the
    warm-up: with 90 they are epochs of a fit of 90 epochs, and a shorter fit uses the same
    fractions.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> factor = multistep(sgd, 1600, milestones=[80, 120], of=160).lr_lambdas[0]
        >>> factor(799), factor(800), round(factor(1200), 6)
        (1.0, 0.1, 0.01)
    """
    check_positive("of", of, "90 for 90 epochs")
    places = [_check_fraction("milestones", place, of) for place in milestones]
    if places != sorted(set(places)):
        raise ConfigError(
            f"milestones must be increasing fractions of the fit, got {list(milestones)}: write "
            "[0.5, 0.75], or [30, 60] with of=90"
        )
    gamma = _check_factor("gamma", gamma)
    drops = [round(place * total_steps) for place in places]
    rise = _check_fraction("warmup", warmup, of)
    return _make_schedule(
        optimizer, total_steps, rise, lambda step, done: gamma ** sum(step >= at for at in drops)
    )


def _make_schedule(
    optimizer: Optimizer, total_steps: int, warmup: float, factor: Callable[[int, float], float]
) -> LambdaLR:
    """Return a warm-up followed by `factor(step, fraction of the rest done)`."""
    check_count("total_steps", total_steps)
    rise = round(_check_fraction("warmup", warmup) * total_steps)
    rest = max(1, total_steps - rise)

    def at(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return factor(step, min(1.0, (step - rise) / rest))

    return LambdaLR(optimizer, at)


def _check_fraction(what: str, given: object, of: float = 1.0) -> float:
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= float(given) < of:
        kind = "a fraction of the fit" if of == 1 else f"a part of {of:g}"
        raise ConfigError(
            f"{what} must be {kind} in [0, {of:g}), got {given!r}: write 0.05 for 5 %"
            + (", or of=90 for epochs of 90" if of == 1 else " with of=1")
        )
    return float(given) / of


def _check_factor(what: str, given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, Real) or not float(given) >= 0:
        raise ConfigError(
            f"{what} must be a factor of the learning rate, at least 0, got {given!r}: "
            "write 0.01 for a hundredth"
        )
    return float(given)
