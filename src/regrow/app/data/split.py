# SPDX-License-Identifier: MIT
"""Holding samples out, class by class."""

from __future__ import annotations

from numbers import Integral, Real

import torch
from torch import Tensor

from regrow.app.data.order import generator
from regrow.errors import ConfigError


def check_held_out(what: str, given: object, samples: int) -> int:
    """How many of `samples` to hold out.

    Args:
        what: The setting's name, for the message.
        given: A fraction in (0, 1), or a whole number of samples.
        samples: How many there are.

    Raises:
        ConfigError: When none or all would be held out.

    Example:
        >>> check_held_out("val_size", 0.1, 1437)
        144
        >>> check_held_out("val_size", 10.0, 1437)
        Traceback (most recent call last):
            ...
        regrow.errors.ConfigError: val_size must be a fraction in (0, 1) or a whole number \
from 1 to 1436, got 10.0: write 0.1 for 10 %
    """
    count = 0
    if isinstance(given, Integral) and not isinstance(given, bool):
        count = int(given)
    elif isinstance(given, Real) and not isinstance(given, bool) and 0 < float(given) < 1:
        count = round(float(given) * samples)
    if not 0 < count < samples:
        raise ConfigError(
            f"{what} must be a fraction in (0, 1) or a whole number from 1 to {samples - 1}, "
            f"got {given!r}: write 0.1 for 10 %"
        )
    return count


def stratified(labels: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Splits samples in two, so that every class gives its share to both.

    Classes give `held_out * class size / samples`, rounded by largest remainders, so that the sum
    is exact.

    Args:
        labels: Whole numbers, shape (samples,).
        held_out: How many to hold out.
        seed: Which of each class.

    Returns:
        Indices of the samples that stay and of those held out, each in rising order.

    Example:
        >>> stay, held = stratified(torch.tensor([0, 0, 1, 1, 1, 1]), 3, seed=0)
        >>> len(stay), sorted([0, 0, 1, 1, 1, 1][i] for i in held)
        (3, [0, 1, 1])
    """
    samples = len(labels)
    classes, sizes = torch.unique(labels, return_counts=True)
    shares = [divmod(held_out * size, samples) for size in sizes.tolist()]
    counts = [whole for whole, _ in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: -shares[i][1])
    for i in by_remainder[: held_out - sum(counts)]:
        counts[i] += 1
    mask = torch.zeros(samples, dtype=torch.bool)
    for label, count in zip(classes.tolist(), counts, strict=True):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "split", label))
        mask[members[order[:count]]] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()
