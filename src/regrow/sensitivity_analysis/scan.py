# SPDX-License-Identifier: MIT
"""Measure the accuracy of a model with one layer or channel group pruned at a time."""

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
from regrow.sensitivity_analysis.scan_units import PruningUnit, Zeros, channel_units, weight_units
from regrow.utils.errors import ConfigError, StateError, check_choice, check_sparsity
from regrow.utils.modes import clear_compiled, eval_mode

Evaluate = Callable[[nn.Module], float]

DEFAULT_CRITERIA = {"weights": "magnitude", "channels": "l2"}


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of one layer, or one group of channels."""

    name: str  # of the parameter or the group
    size: int  # number of weights or channels, pruned ones included
    sparsity: float  # fraction of them that is pruned already
    weights: int  # of channels, all that would be removed with them
    params: float  # fraction of all parameters; a weight counts for both groups that it connects
    macs: float | None  # fraction of all MACs; None without an example input
    accuracy: Mapping[float, float]  # at each sparsity of this layer


@dataclass(frozen=True)
class Sensitivities:
    """Result of `sensitivity`."""

    accuracy: float  # of the unchanged model
    rows: tuple[Sensitivity, ...]  # one for each layer or group, in the order of the model
    excluded: Mapping[str, str]  # why other parameters or groups were not pruned


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
    """Measure the accuracy with one layer pruned at a time, and restore it bit-exactly.

    Nothing is trained: the loss of accuracy compares layers with each other, it does not predict
    the loss after fine-tuning. The model runs in eval mode, without gradients.

    Args:
        model: The model; unchanged afterwards, also if `evaluate` raises.
        evaluate: Returns a model's accuracy, higher is better. Use validation data, not test data.
        sparsities: Fractions in (0, 1) of a layer's weights, or of a group's channels, including
            those already pruned. One weight or channel always remains.
        by: "weights" (layers) or "channels" (groups, zeroed in all their parameters, not cut).
        criterion: As for `regrow.prune` ("magnitude"), or `regrow.channels.prune` ("l2").
        masks: Masks of the weights already pruned.
        example_input: For MACs, and to find channels; None: the module's `example_input_array`.
        include: Patterns of layers to prune; None: as in `regrow.prune`.
        exclude: Patterns of layers not to prune.
        seed: For random criteria.

    Raises:
        ConfigError: For invalid values.
        StateError: If `evaluate` returns no finite number, or a masked weight is not zero.

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
    options = {"masks": masks, "include": include, "exclude": exclude, "seed": seed}
    units, excluded = find_units(model, by, criterion, example_input=example_input, **options)
    return scan(model, evaluate, units, excluded, values, example_input)


def find_units(
    model: nn.Module,
    by: str,
    criterion: str | Criterion | ChannelCriterion | None,
    **options: Any,
) -> tuple[list[PruningUnit], dict[str, str]]:
    """Find the layers or channel groups to prune, and why others are not; see `sensitivity`."""
    check_choice("by", by, DEFAULT_CRITERIA)
    if by == "weights":
        return weight_units(model, criterion or DEFAULT_CRITERIA[by], **options)
    if options.get("example_input") is None:
        raise ConfigError(
            "channels are found by tracing the network: write example_input=torch.zeros(2, 3, 32, "
            "32), or set example_input_array in the module"
        )
    return channel_units(model, criterion or DEFAULT_CRITERIA[by], **options)


def scan(
    model: nn.Module,
    evaluate: Evaluate,
    units: Iterable[PruningUnit],
    excluded: Mapping[str, str],
    sparsities: Sequence[float],
    example_input: Any,
) -> Sensitivities:
    """Measure the accuracy at each sparsity of each unit; arguments as in `sensitivity`."""
    accuracy = measure_accuracy(model, evaluate)
    params = sum(parameter.numel() for parameter in model.parameters())
    macs = None if example_input is None else count_macs(model, example_input).macs
    rows = []
    for unit in units:
        known, found = {unit.n_pruned: accuracy}, {}  # by count, by sparsity
        for sparsity in sparsities:
            count = max(unit.n_pruned, min(round(sparsity * unit.size), unit.size - 1))
            if count not in known:
                with zero_temporarily(model, unit.zeros(count)):
                    known[count] = measure_accuracy(model, evaluate)
            found[sparsity] = known[count]
        row = Sensitivity(
            unit.name,
            unit.size,
            unit.n_pruned / unit.size,
            unit.weights,
            unit.weights / params,
            None if macs is None or unit.macs is None else unit.macs / macs,
            found,
        )
        rows.append(row)
    return Sensitivities(accuracy, tuple(rows), excluded)


@contextmanager
def zero_temporarily(model: nn.Module, zeros: Zeros) -> Iterator[None]:
    """Set some positions to zero, and restore the parameters bit-exactly afterwards."""
    saved = [(parameter, parameter.detach().clone()) for parameter, _ in zeros]
    try:
        for parameter, positions in zeros:
            parameter.detach().masked_fill_(positions.to(parameter.device), 0.0)
        clear_compiled(model)
        yield
    finally:
        for parameter, values in saved:
            parameter.detach().copy_(values)
        clear_compiled(model)


def measure_accuracy(model: nn.Module, evaluate: Evaluate) -> float:
    """Evaluate the model in eval mode, without gradients; the accuracy must be finite."""
    with eval_mode(model), torch.no_grad():
        result = evaluate(model)
    try:
        value = float(result)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise StateError(f"evaluate must return a finite number, higher is better, got {result!r}")
    return value


def check_sparsities(given: Sequence[float]) -> tuple[float, ...]:
    """Check that there are sparsities, all in (0, 1); return them sorted and unique."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ConfigError(
            f"sparsities must be numbers in (0, 1), [0.3, 0.5, 0.7, 0.9], got {given!r}"
        )
    return tuple(sorted({check_sparsity("sparsities", s, zero=False) for s in given}))
