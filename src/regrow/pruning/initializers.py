# SPDX-License-Identifier: MIT
"""Initializers: values of weights that return.

An initializer is called with a `RegrownWeights` and returns values of the weight's shape; only
those at returning positions are used.
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
from regrow.utils.errors import ConfigError, StateError, check_callable


@dataclass(frozen=True)
class RegrownWeights:
    """One parameter of which some weights return."""

    name: str
    # zero at pruned positions; `(out, in, kh, kw)`, `(out, in)`, or transposed `(in, out, kh, kw)`
    weight: Tensor
    kept: Tensor  # bool, the positions that are not pruned
    regrown: Tensor  # bool, the positions that return
    generator: torch.Generator  # on the CPU, so that every device and rank draws the same
    input_dim: int | None = 1  # 1 or 0; None where there is none
    groups: int = 1  # of the convolution, whose weight holds `in / groups` inputs
    removed: Tensor | None = None  # stored values of pruned weights; None: none were stored
    original: Tensor | None = None  # the weight at the remembered step; None: none is
    shard: Shard | None = None  # the rows that all of these are; None: they are whole

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter."""
        return tuple(self.weight.shape) if self.shard is None else self.shard.shape


Initializer = Callable[[RegrownWeights], Tensor]


def zero(back: RegrownWeights) -> Tensor:
    """Zeros, as for RigL's new connections: the network's function does not change."""
    return torch.zeros_like(back.weight)


def removed_values(back: RegrownWeights) -> Tensor:
    """The value that each weight had when it was pruned."""
    if back.removed is None:
        raise StateError(
            f"{back.name}: no removed values were kept: write keep_removed=True, or another init"
        )
    return back.removed


def original(back: RegrownWeights) -> Tensor:
    """The value at initialisation, or at the remembered step."""
    if back.original is None:
        raise StateError(
            f"{back.name}: no earlier values were remembered: call remember_original() before "
            "training, or write another init"
        )
    return back.original


def he(back: RegrownWeights) -> Tensor:
    """He's initialisation: normal with fan_out for convolutions, uniform with fan_in for linear.

    std = sqrt(2 / fan_out), or bound = sqrt(6 / fan_in).

    Source: He et al. 2015, eq. 10 and 14.
    """
    if back.weight.dim() > 2:
        return _normal(back).mul_(math.sqrt(2 / fans(back)[1]))
    return kaiming_uniform(back)


def kaiming_normal(back: RegrownWeights) -> Tensor:
    """Normal with std = sqrt(2 / fan_in)."""
    return _normal(back).mul_(math.sqrt(2 / fans(back)[0]))


def kaiming_uniform(back: RegrownWeights) -> Tensor:
    """Uniform in +-sqrt(6 / fan_in)."""
    return _uniform(back).mul_(math.sqrt(6 / fans(back)[0]))


def xavier(back: RegrownWeights) -> Tensor:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)). Source: Glorot and Bengio 2010, eq. 16."""
    return _uniform(back).mul_(math.sqrt(6 / sum(fans(back))))


def sparse_he(back: RegrownWeights) -> Tensor:
    """Normal with std = sqrt(2 / n), with n the unpruned inputs of each output afterwards.

    Source: Evci et al. 2022 (gradient flow in sparse networks), eq. 1.
    """
    live = _by_output(back, back.kept | back.regrown)
    inputs = live.flatten(1).sum(1).clamp_min(1) if live.dim() > 1 else torch.ones_like(live)
    scale = (2 / inputs.double()).sqrt().to(back.weight.dtype)
    values = _by_output(back, _normal(back))
    scale = scale.view(-1, *[1] * (values.dim() - 1)) if values.dim() else scale
    return _by_output(back, values * scale)


def survivors(back: RegrownWeights) -> Tensor:
    """Values drawn from the layer's surviving weights, with replacement."""
    values = back.weight[back.kept]
    if not len(values):
        raise StateError(f"{back.name} has no surviving weight to draw from: write another init")
    draws = torch.randint(len(values), back.weight.shape, generator=back.generator)
    return values[draws.to(values.device)]


def orthogonal(back: RegrownWeights) -> Tensor:
    """Whole filters that are orthogonal to the surviving ones and to each other.

    Random rows of the matrix `(out, in kh kw)` are orthogonalised against the span of the others
    and scaled to the survivors' mean norm.

    Source: Prakash et al. 2019 (RePr), section 4.
    """
    if back.weight.dim() < 2:
        raise StateError(f"{back.name} has no filters to make orthogonal: write init='zero'")
    first = _by_output(back, back.weight)
    rows = first.flatten(1).double().cpu()
    kept = _by_output(back, back.kept).flatten(1).cpu()
    regrown = _by_output(back, back.regrown).flatten(1).cpu()
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
    drawn = torch.randn(rows.shape, generator=back.generator, dtype=torch.float64)
    for index in whole.nonzero().flatten().tolist():
        direction = drawn[index]
        for _ in range(2):  # twice, because of rounding
            direction = direction - span @ (span.T @ direction)
        direction = direction / direction.norm()
        span = torch.cat([span, direction.unsqueeze(1)], dim=1)
        rows[index] = direction * norm
    values = rows.to(back.weight.dtype).view(first.shape).to(back.weight.device)
    return _by_output(back, values)


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

# Initializers that need only the rows they make values for, and no weight.
BY_ROWS = (zero, removed_values, original, he, sparse_he, kaiming_normal, kaiming_uniform, xavier)


def make_initializer(init: str | Initializer) -> Initializer:
    """Return an initializer by name, or a given callable unchanged."""
    return check_callable("init", init, INITIALIZERS)


def check_makes_single_weights(init: Initializer) -> None:
    """Raise `ConfigError` for an initializer of whole filters, where single weights come back."""
    if init is orthogonal:
        raise ConfigError(
            "init='orthogonal' makes whole filters, and single weights come back here: write "
            "init='zero' or 'he'"
        )


def fans(back: RegrownWeights) -> tuple[int, int]:
    """Compute (fan_in, fan_out) of a weight, with groups and transposition taken into account.

    fan_in is the number of inputs that one output sums, `in / groups * kh * kw`; fan_out the number
    of outputs that depend on one input, `out / groups * kh * kw`.
    """
    shape = back.shape
    if len(shape) < 2:
        return math.prod(shape), math.prod(shape)
    window = math.prod(shape[2:])
    first, second = shape[:2]
    if back.input_dim == 0:  # (in, out / groups, kh, kw)
        return first // back.groups * window, second * window
    return second * window, first // back.groups * window


def _by_output(back: RegrownWeights, tensor: Tensor) -> Tensor:
    """Reorder a tensor of the weight's shape to (out, in / groups, ...); its own inverse."""
    if back.input_dim != 0:
        return tensor
    return tensor.reshape(back.groups, -1, *tensor.shape[1:]).transpose(1, 2).flatten(0, 1)


def _span(rows: Tensor) -> Tensor:
    """Compute an orthonormal basis, as columns, of the span of rows."""
    if not len(rows):
        return rows.T
    basis: Tensor = torch.linalg.svd(rows, full_matrices=False).Vh
    return basis[: int(torch.linalg.matrix_rank(rows))].T


def _normal(back: RegrownWeights) -> Tensor:
    return sharded_random(torch.randn, back.shape, back.shard, back.generator).to(back.weight)


def _uniform(back: RegrownWeights) -> Tensor:
    numbers = sharded_random(torch.rand, back.shape, back.shard, back.generator)
    return numbers.mul_(2).sub_(1).to(back.weight)


MakeRegrown = Callable[[], RegrownWeights]
"""Makes one parameter's `RegrownWeights`: equal ones, until the parameter is written to."""


def initial_values(initializer: Initializer, makes: Sequence[MakeRegrown]) -> list[Initializer]:
    """Return functions that compute the values of each parameter when it is written to.

    Those in `BY_ROWS` are called only then, so that the values of one parameter exist at a time,
    and now too where they may raise an error. Others are called now, and their values are stored.
    """
    if initializer not in BY_ROWS:
        return [_stored(_checked(initializer, make()), make()) for make in makes]
    if initializer in (removed_values, original):
        for make in makes:
            _checked(initializer, make())
    return [partial(_checked, initializer)] * len(makes)


def _stored(values: Tensor, back: RegrownWeights) -> Initializer:
    """Return an initializer that returns these values, at returning positions only."""
    stored = values.to(back.weight.device, back.weight.dtype)[back.regrown]
    return lambda now: torch.zeros_like(now.weight).masked_scatter_(now.regrown, stored)


def _checked(initializer: Initializer, back: RegrownWeights) -> Tensor:
    values = initializer(back)
    if values.shape != back.weight.shape:
        raise StateError(
            f"the initializer of {back.name} must return values of shape "
            f"{tuple(back.weight.shape)}, got {tuple(values.shape)}"
        )
    return values
