# SPDX-License-Identifier: MIT
"""Accuracy against sparsity per unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.channels.importance import ChannelCriterion
from regrow.criteria.base import Criterion
from regrow.profiling.macs import count_macs
from regrow.sensitivity_analysis.scan_units import Part, Zeros, channel_parts, weight_parts
from regrow.utils.errors import ConfigError, StateError, check_choice, check_sparsity
from regrow.utils.modes import clear_compiled, eval_mode

Evaluate = Callable[[nn.Module], float]


UNITS = ("weights", "channels")


DEFAULT_CRITERIA = {"weights": "magnitude", "channels": "l2"}  # where none is named


@dataclass(frozen=True)
class Sensitivity:
    """One layer, or one group of channels.

    Attributes:
        name: Of the parameter, or of the group.
        size: How many weights, or channels, it has; pruned ones included.
        sparsity: How many of these are pruned already, as a fraction.
        weights: How many weights it holds; of channels everything that would go with them.
        params: Their share of all parameters. A weight counts for both groups it connects.
        macs: Their share of all MACs; None where no example was given.
        accuracy: What `evaluate` gave at each sparsity of this layer.
    """

    name: str
    size: int
    sparsity: float
    weights: int
    params: float
    macs: float | None
    accuracy: Mapping[float, float]


@dataclass(frozen=True)
class Sensitivities:
    """What `sensitivity` found.

    Attributes:
        accuracy: Of the model as it is.
        rows: One a layer, in the order of the model.
        excluded: Why the others were not tried.
    """

    accuracy: float
    rows: tuple[Sensitivity, ...]
    excluded: Mapping[str, str]


def sensitivity(
    model: nn.Module,
    evaluate: Evaluate,
    sparsities: Sequence[float] = (0.3, 0.5, 0.7, 0.9),
    *,
    by: str = "weights",
    criterion: str | Criterion | ChannelCriterion | None = None,
    masks: Mapping[str, Tensor] | None = None,
    example_input: Any = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    seed: int = 0,
) -> Sensitivities:
    """Prune one layer after the other, evaluate, and restore it bit-exactly.

    Says where to prune, before pruning. Nothing is trained: what a layer loses here says how it
    compares with others, not what is lost after fine-tuning. The model runs in eval mode, without
    gradients.

    Args:
        model: The model; unchanged afterwards, also where `evaluate` fails.
        evaluate: Returns the accuracy of a model, higher is better. Use validation data: choosing
            where to prune on the test set has used it up.
        sparsities: Fractions in (0, 1) of a layer's weights, or of a group's channels, those that
            are pruned already included. One unit stays always.
        by: "weights" (one layer at a time) or "channels" (one group at a time, zeroed in all
            parameters that hold a part of it; nothing is cut).
        criterion: As for `regrow.prune` ("magnitude"), or `regrow.channels.prune` ("l2").
        masks: What is pruned already.
        example_input: For MACs, and to find channels; None: the module's `example_input_array`.
        include: Patterns of what is tried; None: Conv, ConvTranspose and Linear weights.
        exclude: Patterns of what is not.
        seed: For random criteria.

    Raises:
        ConfigError: For values that cannot be meant.
        StateError: If `evaluate` gives no finite number; for masks that the model does not obey.

    Source: Han et al. 2015, arXiv:1506.02626 (weights); Li et al. 2017, arXiv:1608.08710 (filters).

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = sensitivity(net, lambda net: float(net[2].weight.count_nonzero()), [0.5])
        >>> found.accuracy, [dict(row.accuracy) for row in found.rows]
        (16.0, [{0.5: 16.0}, {0.5: 8.0}])
    """
    values = check_sparsities(sparsities)
    if example_input is None:
        example_input = getattr(model, "example_input_array", None)
    options = {"include": include, "exclude": exclude, "seed": seed}
    parts, excluded = find_parts(
        model, by, criterion, masks=masks, example_input=example_input, **options
    )
    accuracy = evaluated(model, evaluate)
    totals = total_work(model, example_input)
    rows = tuple(scan(model, evaluate, parts, values, accuracy, totals))
    return Sensitivities(accuracy, rows, excluded)


def find_parts(
    model: nn.Module,
    by: str,
    criterion: str | Criterion | ChannelCriterion | None,
    **options: Any,
) -> tuple[list[Part], dict[str, str]]:
    """What is tried one at a time, and why the rest is not.

    Args:
        model: The model.
        by: "weights" or "channels".
        criterion: None: the usual one.
        options: Of `weight_parts` and `channel_parts`.
    """
    check_choice("by", by, UNITS)
    if by == "weights":
        return weight_parts(model, criterion or DEFAULT_CRITERIA[by], **options)
    if options.get("example_input") is None:
        raise ConfigError(
            "channels are found by tracing the network: write example_input=torch.zeros(2, 3, 32, "
            "32), or set example_input_array in the module"
        )
    return channel_parts(model, criterion or DEFAULT_CRITERIA[by], **options)


def scan(
    model: nn.Module,
    evaluate: Evaluate,
    parts: Iterable[Part],
    sparsities: Sequence[float],
    accuracy: float,
    totals: tuple[int, float | None],
) -> Iterator[Sensitivity]:
    """One row a part, as soon as it is there.

    Args:
        model: The model.
        evaluate: Gives its accuracy.
        parts: What is pruned alone.
        sparsities: Of each part.
        accuracy: Of the model as it is; used where a part has that sparsity already.
        totals: Parameters and MACs of the model.
    """
    params, macs = totals
    for part in parts:
        known = {part.gone: accuracy}
        found = {}
        for sparsity in sparsities:
            count = max(part.gone, min(round(sparsity * part.size), part.size - 1))
            if count not in known:
                with zeroed(model, part.zeros(count)):
                    known[count] = evaluated(model, evaluate)
            found[sparsity] = known[count]
        yield Sensitivity(
            part.name,
            part.size,
            part.gone / part.size,
            part.weights,
            part.weights / params,
            None if macs is None or part.macs is None else part.macs / macs,
            found,
        )


@contextmanager
def zeroed(model: nn.Module, zeros: Zeros) -> Iterator[None]:
    """Set some weights to zero; afterwards the parameters are restored bit-exactly."""
    saved = [(parameter, parameter.detach().clone()) for parameter, _ in zeros]
    try:
        for parameter, places in zeros:
            parameter.detach().masked_fill_(places.to(parameter.device), 0.0)
        clear_compiled(model)
        yield
    finally:
        for parameter, values in saved:
            parameter.detach().copy_(values)
        clear_compiled(model)


def evaluated(model: nn.Module, evaluate: Evaluate) -> float:
    """The accuracy of the model in eval mode, without gradients.

    Raises:
        StateError: If it is not a finite number.
    """
    with eval_mode(model), torch.no_grad():
        found = evaluate(model)
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise StateError(f"evaluate must give a finite number, higher is better, got {found!r}")
    return value


def total_work(model: nn.Module, example_input: Any) -> tuple[int, float | None]:
    """All parameters, and all MACs of one example where one is given."""
    params = sum(parameter.numel() for parameter in model.parameters())
    return params, None if example_input is None else count_macs(model, example_input).macs


def check_sparsities(given: Sequence[float]) -> tuple[float, ...]:
    """Returns the sparsities in order, each once.

    Raises:
        ConfigError: If there is none, or one is not in (0, 1).
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ConfigError(
            f"sparsities must be numbers in (0, 1), [0.3, 0.5, 0.7, 0.9], got {given!r}"
        )
    return tuple(sorted({check_sparsity("sparsities", s, zero=False) for s in given}))
