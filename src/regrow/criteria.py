# SPDX-License-Identifier: MIT
"""Criteria: (weight, grad) -> importance scores of the weight's shape, higher = keep.

Any callable may be a criterion. What it asks for in its signature it gets: a second positional
parameter without default means that it needs gradients, a keyword `generator` means that it draws
random numbers (seeded by seed, event and name, so that every rank and every run draws the same).
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from regrow.computed import Scores, by_lot, elementwise
from regrow.draws import drawn
from regrow.errors import ConfigError, StateError, check_choice
from regrow.sharding import is_cut, local, shard_of

Criterion = Callable[..., Tensor]


def magnitude(weight: Tensor, grad: Tensor | None = None) -> Tensor:
    """|w|: small weights matter least.

    Source: Han et al. 2015.

    Example:
        >>> magnitude(torch.tensor([-2.0, 1.0]))
        tensor([2., 1.])
    """
    return weight.abs()


def random(weight: Tensor, grad: Tensor | None = None, *, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1): the control that every criterion must beat.

    Example:
        >>> random(torch.zeros(3), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3])
    """
    # on the CPU: the same on every device
    numbers = drawn(torch.rand, weight.shape, shard_of("weight", weight), generator)
    return torch.empty_like(local(weight), dtype=torch.float32).copy_(numbers)


def gradient(weight: Tensor, grad: Tensor) -> Tensor:
    """|g|: the loss reacts to this weight.

    Example:
        >>> gradient(torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 0.0]))
        tensor([3., 0.])
    """
    return grad.abs()


def taylor(weight: Tensor, grad: Tensor) -> Tensor:
    """|g w|: the first-order change of the loss if the weight goes; at step 0 this is SNIP.

    Source: Molchanov et al. 2017; Lee et al. 2019, eq. 3.

    Example:
        >>> taylor(torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 0.5]))
        tensor([3., 1.])
    """
    wide = torch.promote_types(
        weight.dtype, torch.float32
    )  # small products vanish in half precision
    return (grad.to(wide) * weight).abs()


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


class Movement:
    """Movement pruning's scores S = -sum over steps of g w: weights that move to zero go first.

    Starts empty; the first event needs at least one step before it. With `soft=True` the scores of
    pruned weights go on by their dense values, as in the paper, so that masks may move; these
    values go on learning too, where the paper's stand still while they are pruned.

    Source: Sanh et al. 2020, eq. 4 (up to the learning rate, which orders nothing while constant).

    Example:
        >>> movement = Movement()
        >>> movement.update("w", torch.tensor([1.0, 1.0]), torch.tensor([0.5, -0.5]))
        >>> movement.scores("w", torch.zeros(2))
        tensor([-0.5000,  0.5000])
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, name: str, weight: Tensor, grad: Tensor) -> None:
        if name not in self._sums:
            self._sums[name] = torch.zeros_like(weight, dtype=torch.float32)
        self._sums[name].sub_(grad.float() * weight.float())

    def scores(self, name: str, weight: Tensor) -> Tensor:
        if name not in self._sums:
            raise StateError(
                f"movement has seen no gradient of {name}: prune after at least one step, and "
                "leave out frozen layers"
            )
        return self._sums[name].to(weight.device)

    def state_dict(self) -> dict[str, Tensor]:
        # copies: sums go on in place, and a file may be written by a thread of its own
        return {name: total.clone() for name, total in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._sums = {name: total.clone() for name, total in state.items()}


CRITERIA: Mapping[str, Criterion | type[Movement]] = {
    "magnitude": magnitude,
    "random": random,
    "gradient": gradient,
    "taylor": taylor,
    "snip": taylor,
    "movement": Movement,
}


def make_criterion(criterion: str | Criterion | TrackingCriterion) -> Criterion | TrackingCriterion:
    """A criterion from its name, or the callable or object itself.

    Raises:
        ConfigError: For an unknown name, or something that cannot be called.

    Example:
        >>> make_criterion("snip") is taylor
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


def score(
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
        scores = criterion.scores(name, local(weight))
    else:
        keywords: dict[str, Any] = {}
        if "generator" in _parameters(criterion):
            keywords["generator"] = seeded(*seed, name)
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
    if is_cut(scores) and is_cut(weight):  # it saw the whole parameter, as a DTensor
        cut: Any = scores
        scores = local(cut.redistribute(placements=weight.placements))  # type: ignore[attr-defined]
    weight = local(weight)
    if scores.shape != weight.shape or not scores.is_floating_point():
        raise StateError(
            f"scores of {name} must be floating point of shape {tuple(weight.shape)}, the "
            f"criterion gave {scores.dtype} of shape {tuple(scores.shape)}"
        )
    return scores


def scores_of(
    criterion: Criterion | TrackingCriterion,
    name: str,
    weight: Tensor,
    grad: Tensor | None,
    seed: tuple[int, int],
) -> Scores:
    """`score`, without its memory where the criterion is known to look at single places.

    "magnitude", "gradient", "taylor" and "random" are computed wherever they are read.
    """
    if criterion is magnitude:
        return elementwise(magnitude, local(weight))
    if criterion is random:
        part, shard = local(weight), shard_of(name, weight)
        return by_lot(part, shard, lambda: seeded(*seed, name))
    if criterion not in (gradient, taylor) or grad is None or grad.shape != weight.shape:
        return score(criterion, name, weight, grad, seed)
    function: Any = criterion
    return elementwise(function, local(weight), local(grad))


def seeded(seed: int, event: int, name: str) -> torch.Generator:
    """A generator that depends on (seed, event, name) alone, never on what was drawn before."""
    key = hashlib.blake2b(f"{seed}/{event}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
