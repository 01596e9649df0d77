# SPDX-License-Identifier: MIT
"""Criterion protocols, registry, checked scoring of one parameter.

Any callable may be a criterion. What it asks for in its signature it gets: a second positional
parameter without default means that it needs gradients, a keyword `generator` means that it draws
random numbers (seeded by seed, event and name, so that every rank and every run draws the same).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from regrow.criteria.elementwise import gradient, magnitude, random, taylor
from regrow.criteria.movement import Movement
from regrow.distributed.shard import is_dtensor, local_tensor, shard_of
from regrow.masks.lazy_scores import ScoresLike, elementwise_scores, random_scores
from regrow.utils.errors import ConfigError, StateError, check_choice
from regrow.utils.random import make_generator

Criterion = Callable[..., Tensor]


@runtime_checkable
class TrackingCriterion(Protocol):
    """A criterion that gathers evidence at every optimizer step.

    Of a parameter that is sharded among ranks it is given this rank's rows.
    """

    def update(self, name: str, weight: Tensor, grad: Tensor) -> None:
        """Takes in one step's weight and gradient."""
        ...

    def scores(self, name: str, weight: Tensor) -> Tensor:
        """The scores gathered so far."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


CRITERIA: Mapping[str, Criterion | type[Movement]] = {
    "magnitude": magnitude,
    "random": random,
    "gradient": gradient,
    "taylor": taylor,
    "snip": taylor,
    "movement": Movement,
}


def get_criterion(criterion: str | Criterion | TrackingCriterion) -> Criterion | TrackingCriterion:
    """A criterion from its name, or the callable or object itself.

    Raises:
        ConfigError: For an unknown name, or something that cannot be called.

    Example:
        >>> get_criterion("snip") is taylor
        True
    """
    if isinstance(criterion, str):
        found = CRITERIA[check_choice("criterion", criterion, CRITERIA)]
        return found() if isinstance(found, type) else found
    callable_ = callable(criterion) or isinstance(criterion, TrackingCriterion)
    if isinstance(criterion, type) or not callable_:
        raise ConfigError(
            f"criterion must be a name ({', '.join(CRITERIA)}), a callable (weight, grad) -> "
            f"scores, or an object such as Movement(), got {criterion!r}"
        )
    return criterion


def needs_gradients(criterion: Criterion | TrackingCriterion) -> bool:
    """Whether scores can only be computed with gradients at hand.

    Example:
        >>> needs_gradients(magnitude), needs_gradients(taylor)
        (False, True)
    """
    if isinstance(criterion, TrackingCriterion):
        return False
    positional = [
        parameter
        for parameter in _parameters(criterion).values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return len(positional) > 1 and positional[1].default is inspect.Parameter.empty


def _parameters(criterion: Criterion) -> Mapping[str, inspect.Parameter]:
    """What a criterion can be given; builtins such as `torch.abs` do not tell: only the weight."""
    try:
        return inspect.signature(criterion).parameters
    except ValueError:
        return {}


def compute_scores(
    criterion: Criterion | TrackingCriterion,
    name: str,
    weight: Tensor,
    grad: Tensor | None,
    seed: tuple[int, int],
) -> Tensor:
    """The scores of one parameter, checked.

    Args:
        criterion: What ranks.
        name: The parameter's name; part of the random seed.
        weight: The weight, any shape; a sharded one as the DTensor it is, so that a criterion
            that looks at a whole layer still does.
        grad: Its gradient, or None.
        seed: (seed, event number).

    Raises:
        StateError: If gradients are needed and missing, or the scores have another shape.
    """
    version = weight._version
    if isinstance(criterion, TrackingCriterion):
        scores = criterion.scores(name, local_tensor(weight))
    else:
        keywords: dict[str, Any] = {}
        if "generator" in _parameters(criterion):
            keywords["generator"] = make_generator(*seed, name)
        if not needs_gradients(criterion):
            scores = criterion(weight, **keywords)
        elif grad is None:
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
        raise StateError(f"the criterion gave no tensor for {name} but {type(scores).__name__}")
    if is_dtensor(scores) and is_dtensor(weight):  # it saw the whole parameter, as a DTensor
        cut: Any = scores
        scores = local_tensor(cut.redistribute(placements=weight.placements))  # type: ignore[attr-defined]
    weight = local_tensor(weight)
    if scores.shape != weight.shape or not scores.is_floating_point():
        raise StateError(
            f"scores of {name} must be floating point of shape {tuple(weight.shape)}, the "
            f"criterion gave {scores.dtype} of shape {tuple(scores.shape)}"
        )
    return scores


def lazy_criterion_scores(
    criterion: Criterion | TrackingCriterion,
    name: str,
    weight: Tensor,
    grad: Tensor | None,
    seed: tuple[int, int],
) -> ScoresLike:
    """`score`, without its memory where the criterion is known to look at single places.

    "magnitude", "gradient", "taylor" and "random" are computed wherever they are read.
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
