# SPDX-License-Identifier: MIT
"""Criterion protocols, registry, checked scoring of one parameter.

Any callable may be a criterion; its signature says what it needs. A second positional parameter
without default means gradients, unless the function never reads it; a keyword `generator` means
random numbers (seeded by seed, event and name, so that every rank and every run draws the same).
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from regrow.criteria.block_fisher import BlockFisher
from regrow.criteria.elementwise import (
    gradient,
    magnitude,
    random,
    relative_magnitude,
    taylor,
)
from regrow.criteria.movement import Movement
from regrow.distributed.shard import is_dtensor, local_tensor, shard_of
from regrow.masks.lazy_scores import ScoresLike, elementwise_scores, random_scores
from regrow.utils.errors import ConfigError, StateError, check_choice
from regrow.utils.random import make_generator

Criterion = Callable[..., Tensor]


@runtime_checkable
class TrackingCriterion(Protocol):
    """A criterion that accumulates scores at every optimizer step.

    For a sharded parameter it receives this rank's rows.
    """

    def update(self, name: str, weight: Tensor, grad: Tensor) -> None:
        """Add one step's weight and gradient."""
        ...

    def scores(self, name: str, weight: Tensor) -> Tensor:
        """Return the scores accumulated so far."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


CRITERIA: Mapping[str, Criterion | type[Movement | BlockFisher]] = {
    "magnitude": magnitude,
    "relative_magnitude": relative_magnitude,
    "random": random,
    "gradient": gradient,
    "taylor": taylor,
    "snip": taylor,
    "movement": Movement,
    "block_fisher": BlockFisher,
}


def get_criterion(criterion: str | Criterion | TrackingCriterion) -> Criterion | TrackingCriterion:
    """Return a criterion by name, or check a given callable or object."""
    if isinstance(criterion, str):
        named = CRITERIA[check_choice("criterion", criterion, CRITERIA)]
        return named() if isinstance(named, type) else named
    valid = callable(criterion) or isinstance(criterion, TrackingCriterion)
    if isinstance(criterion, type) or not valid:
        raise ConfigError(
            f"criterion must be a name ({', '.join(CRITERIA)}), a callable (weight, grad) -> "
            f"scores, or an object such as Movement(), got {criterion!r}"
        )
    return criterion


def needs_gradients(criterion: Criterion | TrackingCriterion) -> bool:
    """Check whether a criterion reads gradients, not only takes them."""
    name = _gradient_parameter(criterion)
    return name is not None and _reads(criterion, name)


def _gradient_parameter(criterion: Criterion | TrackingCriterion) -> str | None:
    """The name of the parameter that takes gradients; None if there is none."""
    if isinstance(criterion, TrackingCriterion):
        return None
    positional = [
        parameter
        for parameter in _parameters(criterion).values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(positional) > 1 and positional[1].default is inspect.Parameter.empty:
        return positional[1].name
    return None


def _reads(criterion: Criterion | TrackingCriterion, name: str) -> bool:
    """Whether a callable reads an argument; True where that cannot be known."""
    function: Any = criterion
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, nn.Module):
        function = function.forward
    elif not inspect.isroutine(function):
        function = type(function).__call__
    code = getattr(function, "__code__", None)
    if code is None or hasattr(function, "__wrapped__") or name not in code.co_varnames:
        return True
    return any(
        "LOAD" in read.opname  # Python 3.13 reads two names at once
        and name in (read.argval if isinstance(read.argval, tuple) else (read.argval,))
        for read in dis.get_instructions(code)
    )


def _parameters(criterion: Criterion) -> Mapping[str, inspect.Parameter]:
    """Parameters of a criterion; empty for builtins without signature, such as `torch.abs`."""
    try:
        called = criterion.forward if isinstance(criterion, nn.Module) else criterion
        return inspect.signature(called).parameters
    except ValueError:
        return {}


def compute_scores(
    criterion: Criterion | TrackingCriterion,
    name: str,
    weight: Tensor,
    grad: Tensor | None,
    seed: tuple[int, int],
) -> Tensor:
    """Compute and check the scores of one parameter.

    `weight` is a DTensor if it is sharded, so that a criterion can compute over the whole layer;
    `seed` is (seed, event number).
    """
    version = weight._version
    if isinstance(criterion, TrackingCriterion):
        scores = criterion.scores(name, local_tensor(weight))
    else:
        keywords: dict[str, Any] = {}
        if "generator" in _parameters(criterion):
            keywords["generator"] = make_generator(*seed, name)
        if _gradient_parameter(criterion) is None:
            scores = criterion(weight, **keywords)
        elif grad is None and needs_gradients(criterion):
            raise StateError(
                f"the criterion needs the gradient of {name}, which has none: it may be frozen or "
                "unused in the loss; exclude it, or prune by magnitude"
            )
        else:
            scores = criterion(weight, grad, **keywords)
    if weight._version != version:
        raise StateError(
            f"the criterion changed {name} in place: let it compute on a copy, w.abs() and not "
            "w.abs_()"
        )
    if not isinstance(scores, Tensor):
        raise StateError(f"the criterion returned no tensor for {name} but {type(scores).__name__}")
    if is_dtensor(scores) and is_dtensor(weight):
        dtensor: Any = scores
        scores = local_tensor(dtensor.redistribute(placements=weight.placements))  # type: ignore[attr-defined]
    weight = local_tensor(weight)
    if scores.shape != weight.shape or not scores.is_floating_point():
        raise StateError(
            f"scores of {name} must be floating point of shape {tuple(weight.shape)}, the "
            f"criterion returned {scores.dtype} of shape {tuple(scores.shape)}"
        )
    return scores


def lazy_criterion_scores(
    criterion: Criterion | TrackingCriterion,
    name: str,
    weight: Tensor,
    grad: Tensor | None,
    seed: tuple[int, int],
) -> ScoresLike:
    """`compute_scores` without its memory for elementwise criteria.

    "magnitude", "gradient", "taylor" and "random" are computed chunk by chunk on every pass.
    """
    if criterion is magnitude:
        return elementwise_scores(magnitude, local_tensor(weight))
    if criterion is random:
        part, shard = local_tensor(weight), shard_of(name, weight)
        return random_scores(part, shard, lambda: make_generator(*seed, name))
    if criterion not in (gradient, taylor) or grad is None or grad.shape != weight.shape:
        return compute_scores(criterion, name, weight, grad, seed)
    function: Any = criterion
    return elementwise_scores(function, local_tensor(weight), local_tensor(grad))
