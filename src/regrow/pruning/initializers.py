# SPDX-License-Identifier: MIT
"""Values of weights that come back.

An initialiser is called with a `Return` and gives values of the weight's shape; only those at the
places that come back are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from regrow.distributed.shard import Shard
from regrow.distributed.sharded_random import sharded_random
from regrow.utils.errors import ConfigError, StateError, check_choice


@dataclass(frozen=True)
class RegrownWeights:
    """One parameter of which some places come back.

    Attributes:
        name: The parameter's name.
        weight: Its values, zero at pruned places: `(out, in, kh, kw)`, `(out, in)`, or for
            transposed convolutions `(in, out, kh, kw)`.
        kept: Bool, the places that were never gone.
        regrown: Bool, the places that come back.
        generator: For draws, on the CPU, so that every device and rank draws the same.
        input_dim: The dimension of inputs, 1 or 0; None where there is none.
        groups: Groups of the convolution; its weight holds `in / groups` inputs.
        removed: Stored values of pruned weights; None where nothing was stored.
        original: The weight at the remembered step; None where nothing was remembered.
        shard: Which rows of a sharded parameter all of these are; None: they are whole.
    """

    name: str
    weight: Tensor
    kept: Tensor
    regrown: Tensor
    generator: torch.Generator
    input_dim: int | None = 1
    groups: int = 1
    removed: Tensor | None = None
    original: Tensor | None = None
    shard: Shard | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter."""
        return tuple(self.weight.shape) if self.shard is None else self.shard.shape


Initializer = Callable[[RegrownWeights], Tensor]


def zero(back: RegrownWeights) -> Tensor:
    """Starts at zero, as RigL's new connections do, so that the function does not jump."""
    return torch.zeros_like(back.weight)


def removed_values(back: RegrownWeights) -> Tensor:
    """The value each weight had when it was pruned.

    Raises:
        StateError: If nothing was kept.
    """
    if back.removed is None:
        raise StateError(
            f"{back.name}: no removed values were kept: write keep_removed=True, or another init"
        )
    return back.removed


def original(back: RegrownWeights) -> Tensor:
    """The value at initialisation, or at the step that was remembered.

    Raises:
        StateError: If none was remembered.
    """
    if back.original is None:
        raise StateError(
            f"{back.name}: no earlier values were remembered: call remember() before training, or "
            "write another init"
        )
    return back.original


def he(back: RegrownWeights) -> Tensor:
    """He's initialisation: normal with fan_out for convolutions, uniform with fan_in for linear.

    std = sqrt(2 / fan_out), or bound = sqrt(6 / fan_in).

    Source: He et al. 2015, eq. 10 and 14.
    """
    return kaiming_normal(back, "fan_out") if back.weight.dim() > 2 else kaiming_uniform(back)


def kaiming_normal(back: RegrownWeights, mode: str = "fan_in") -> Tensor:
    """Normal with std = sqrt(2 / fan).

    Args:
        back: What comes back.
        mode: "fan_in" or "fan_out".
    """
    return _normal(back).mul_(math.sqrt(2 / fans(back)[_FANS.index(mode)]))


def kaiming_uniform(back: RegrownWeights, mode: str = "fan_in") -> Tensor:
    """Uniform in +-sqrt(6 / fan)."""
    return _uniform(back).mul_(math.sqrt(6 / fans(back)[_FANS.index(mode)]))


def xavier(back: RegrownWeights) -> Tensor:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)).

    Source: Glorot and Bengio 2010, eq. 16.
    """
    return _uniform(back).mul_(math.sqrt(6 / sum(fans(back))))


def sparse_he(back: RegrownWeights) -> Tensor:
    """Normal with std = sqrt(2 / n) where n is how many inputs each output has left.

    n counts what was kept and what comes back, output by output.

    Source: Evci et al. 2022 (gradient flow in sparse networks), eq. 1.
    """
    live = _turned(back, back.kept | back.regrown)
    inputs = live.flatten(1).sum(1).clamp_min(1) if live.dim() > 1 else torch.ones_like(live)
    scale = (2 / inputs.double()).sqrt().to(back.weight.dtype)
    values = _turned(back, _normal(back))
    scale = scale.view(-1, *[1] * (values.dim() - 1)) if values.dim() else scale
    return _turned(back, values * scale)


def survivors(back: RegrownWeights) -> Tensor:
    """Drawn from the layer's surviving weights, with replacement.

    Raises:
        StateError: If none survives.
    """
    values = back.weight[back.kept]
    if not len(values):
        raise StateError(f"{back.name} has no surviving weight to draw from: write another init")
    draws = torch.randint(len(values), back.weight.shape, generator=back.generator)
    return values[draws.to(values.device)]


def orthogonal(back: RegrownWeights) -> Tensor:
    """Whole filters that are orthogonal to the surviving ones and to each other.

    Rows of the matrix `(out, in kh kw)` are drawn, freed of their part in the span of the others,
    and given the survivors' mean norm.

    Raises:
        StateError: If a filter comes back only in part, or no direction is left.

    Source: Prakash et al. 2019 (RePr), section 4.
    """
    if back.weight.dim() < 2:
        raise StateError(f"{back.name} has no filters to make orthogonal: write init='zero'")
    first = _turned(back, back.weight)
    rows = first.flatten(1).double().cpu()
    kept = _turned(back, back.kept).flatten(1).cpu()
    regrown = _turned(back, back.regrown).flatten(1).cpu()
    whole = regrown.all(1)
    if not torch.equal(whole, regrown.any(1)):
        raise StateError(
            f"{back.name}: orthogonal makes whole filters, and some come back only in part: "
            "write init='he', or regrow whole filters"
        )
    alive = rows[kept.any(1)]
    span = _span(alive)
    free = rows.shape[1] - span.shape[1]
    if int(whole.sum()) > free:
        raise StateError(
            f"{back.name}: {int(whole.sum())} filters come back, only {free} directions are "
            "orthogonal to the surviving ones: write init='he'"
        )
    norm = alive.norm(dim=1).mean() if len(alive) else torch.ones((), dtype=torch.float64)
    found = torch.randn(rows.shape, generator=back.generator, dtype=torch.float64)
    for index in whole.nonzero().flatten().tolist():
        direction = found[index]
        for _ in range(2):  # once more, because rounding leaves a rest
            direction = direction - span @ (span.T @ direction)
        direction = direction / direction.norm()
        span = torch.cat([span, direction.unsqueeze(1)], dim=1)
        rows[index] = direction * norm
    values = rows.to(back.weight.dtype).view(first.shape).to(back.weight.device)
    return _turned(back, values)


INITIALIZERS: Mapping[str, Initializer] = {
    "zero": zero,
    "removed": removed_values,
    "original": original,
    "he": he,
    "sparse_he": sparse_he,
    "kaiming_normal": kaiming_normal,
    "kaiming_uniform": kaiming_uniform,
    "xavier": xavier,
    "orthogonal": orthogonal,
    "survivors": survivors,
}


# What needs only the rows that are asked for.
BY_ROWS = (zero, removed_values, original, he, sparse_he, kaiming_normal, kaiming_uniform, xavier)


_FANS = ("fan_in", "fan_out")


def make_initializer(init: str | Initializer) -> Initializer:
    """An initialiser from its name, or the callable itself.

    Raises:
        ConfigError: For an unknown name or something that cannot be called.

    Example:
        >>> make_initializer("he") is he
        True
    """
    if isinstance(init, str):
        return INITIALIZERS[check_choice("init", init, INITIALIZERS)]
    if not callable(init):
        raise ConfigError(f"init must be a name or a callable, got {init!r}")
    return init


def fans(back: RegrownWeights) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight, counted truly.

    fan_in is how many inputs one output sums, `in / groups * kh * kw`; fan_out how many outputs one
    input reaches, `out / groups * kh * kw`.
    """
    shape = back.shape
    if len(shape) < 2:
        return math.prod(shape), math.prod(shape)
    window = math.prod(shape[2:])
    first, second = shape[:2]
    if back.input_dim == 0:  # (in, out / groups, kh, kw)
        return first // back.groups * window, second * window
    return second * window, first // back.groups * window


def _turned(back: RegrownWeights, tensor: Tensor) -> Tensor:
    """A tensor of the weight's shape as (out, in / groups, ...), one row an output; and back."""
    if back.input_dim != 0:
        return tensor
    return tensor.reshape(back.groups, -1, *tensor.shape[1:]).transpose(1, 2).flatten(0, 1)


def _span(rows: Tensor) -> Tensor:
    """An orthonormal basis, as columns, of what the rows span; equal rows count once."""
    if not len(rows):
        return rows.T
    basis: Tensor = torch.linalg.svd(rows, full_matrices=False).Vh
    return basis[: int(torch.linalg.matrix_rank(rows))].T


def _normal(back: RegrownWeights) -> Tensor:
    return sharded_random(torch.randn, back.shape, back.shard, back.generator).to(back.weight)


def _uniform(back: RegrownWeights) -> Tensor:
    numbers = sharded_random(torch.rand, back.shape, back.shard, back.generator)
    return numbers.mul_(2).sub_(1).to(back.weight)


def callable_name(given: object) -> str:
    """The name of a rule or an initialiser.

    Example:
        >>> callable_name("he"), callable_name(sparse_he)
        ('he', 'sparse_he')
    """
    return given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)


MakeRegrown = Callable[[], RegrownWeights]
"""Makes one parameter's `Return`: the same each time, until the parameter is written to."""


def initial_values(initializer: Initializer, makes: Sequence[MakeRegrown]) -> list[Initializer]:
    """What gives the values of each parameter when it is written to.

    Rules that look at no weight are asked then, so that the values of one parameter are there at a
    time; what they may lack is asked for now. Any other is asked now, and its values at the places
    that come back are held.

    Raises:
        StateError: Where a rule lacks something, or gives another shape.

    Example:
        >>> from regrow.pruning.initializers import make_initializer
        >>> masks = torch.eye(2, dtype=torch.bool)
        >>> back = RegrownWeights("w", torch.zeros(2), *masks, torch.Generator())
        >>> [values] = initial_values(make_initializer("zero"), [lambda: back])
        >>> values(back)
        tensor([0., 0.])
    """
    if initializer not in BY_ROWS:
        return [_held(_checked(initializer, make()), make()) for make in makes]
    if initializer in (removed_values, original):
        for make in makes:
            _checked(initializer, make())
    return [partial(_checked, initializer)] * len(makes)


def _held(values: Tensor, back: RegrownWeights) -> Initializer:
    """Gives these values, of which it holds those that come back."""
    held = values.to(back.weight.device, back.weight.dtype)[back.regrown]
    return lambda now: torch.zeros_like(now.weight).masked_scatter_(now.regrown, held)


def _checked(initializer: Initializer, back: RegrownWeights) -> Tensor:
    values = initializer(back)
    if values.shape != back.weight.shape:
        raise StateError(
            f"the initialiser of {back.name} must give values of shape "
            f"{tuple(back.weight.shape)}, got {tuple(values.shape)}"
        )
    return values
