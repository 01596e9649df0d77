# SPDX-License-Identifier: MIT
"""Repair a pruned network by the cheapest means that suffices."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from regrow.calibration.batch_norm_recalibration import recalibrate
from regrow.calibration.calibrate import inputs_of, refit_layers
from regrow.calibration.fidelity import class_logits
from regrow.calibration.joint_refit import NoGradientError, refit_jointly
from regrow.calibration.moments import Data, find_transforming, order_layers
from regrow.calibration.sequence_rows import find_rows
from regrow.utils.batches import Batches, bound_forward
from regrow.utils.errors import (
    ConfigError,
    StateError,
    check_count,
    check_damping,
    check_not_text,
    check_positive,
)
from regrow.utils.modes import eval_mode

Measure = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Repair:
    """The result of `repair`.

    Attributes:
        rung: The repair that the model now has: "none", "batch_norm", "refit", "joint" or
            "training".
        holds: Whether its measure is high enough; else it is the best of all.
        measures: The measure after each repair that was tried.
    """

    rung: str
    holds: bool
    measures: dict[str, float]


def repair(
    model: nn.Module,
    dense: nn.Module,
    masks: Mapping[str, Tensor],
    data: Batches,
    *,
    at_least: float = 0.99,
    measure: Measure | None = None,
    train: Callable[[nn.Module], object] | None = None,
    samples: int = 1024,
    damping: float = 1e-3,
) -> Repair:
    """Repair a pruned network in place, by the cheapest repair after which a measure holds.

    The repairs are, from the cheapest: nothing; batch-norm statistics estimated again; kept weights
    refitted layer by layer; those of all layers refitted together; training. The first
    three start from the pruned network, since batch-norm statistics after a refit would amplify
    what it has shrunk; each other one from the repair before. If none suffices, the best remains.

    Args:
        model: The pruned model.
        dense: A copy of it before it was pruned.
        masks: Bool masks by parameter name, such as those of `regrow.prune`. Weights that several
            layers share, or that a layer transforms before it uses them, are not refitted.
        data: Unlabelled batches; see `regrow.calibrate`.
        at_least: What the measure must reach: a share above 0, or with `measure` any number.
        measure: Returns a number for a model, higher is better, such as its validation accuracy;
            NaN, as of a network that predicts one class only, is lower than all numbers. None: the
            share of the examples for which its largest logit (dim 1) is the dense one's.
        train: Trains a model, and keeps its masks; None: there is no training.
        samples: Number of examples to use, rounded up to whole batches.
        damping: Ridge term of the refit, as a fraction of the mean squared input.

    Returns:
        What was done, and the measures.

    Raises:
        ConfigError, StateError: For invalid settings, inputs that are not finite, and a measure
            that is always NaN. After any error the model is as it was given.

    Example:
        >>> import copy, regrow
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> dense, data = copy.deepcopy(net), [torch.randn(64, 8)]
        >>> repair(net, dense, regrow.prune(net, 0.1), data, at_least=0.5).rung
        'none'
    """
    used = Data(inputs_of(model, data, check_count("samples", samples)))
    judge = agreement_with(dense, used) if measure is None else measure
    if measure is None:
        at_least = check_positive("at_least", at_least, "0.99")
    else:
        at_least = _check_at_least(at_least)
    return climb(model, dense, masks, used, judge, at_least, train, check_damping(damping))


@torch.no_grad()
def climb(
    model: nn.Module,
    dense: nn.Module,
    masks: Mapping[str, Tensor],
    data: Data,
    measure: Measure,
    at_least: float,
    train: Callable[[nn.Module], object] | None,
    damping: float,
) -> Repair:
    """As `repair`, with the data at hand."""
    pruned, measures = _copy_state(model), dict[str, float]()
    best = pruned
    for rung, act in _rungs(model, dense, masks, data, train, damping):
        if rung in ("batch_norm", "refit"):
            model.load_state_dict(pruned)
        try:
            act()
            measures[rung] = float(measure(model))
        except NoGradientError:
            continue  # the next repair may suffice
        except BaseException:
            model.load_state_dict(pruned)
            raise
        if measures[rung] >= at_least:
            return Repair(rung, True, measures)
        if rung == _best(measures):
            best = _copy_state(model)
    model.load_state_dict(best)
    if all(math.isnan(value) for value in measures.values()):
        raise StateError(
            f"measure must return a number, higher is better, got nan after {', '.join(measures)}"
        )
    return Repair(_best(measures), False, measures)


def _best(measures: Mapping[str, float]) -> str:
    """Return the repair with the highest measure, of equal ones the cheapest; NaN is the lowest."""
    return max(measures, key=lambda rung: (not math.isnan(measures[rung]), measures[rung]))


def _check_at_least(given: object) -> float:
    """Return what a measure must reach, of any sign, such as that of a negative loss."""
    check_not_text("at_least", given)
    if isinstance(given, bool) or not isinstance(given, Real) or not math.isfinite(given):
        raise ConfigError(
            f"at_least must be a finite number, which measure has to reach, got {given!r}"
        )
    return float(given)


def _rungs(
    model: nn.Module,
    dense: nn.Module,
    masks: Mapping[str, Tensor],
    data: Data,
    train: Callable[[nn.Module], object] | None,
    damping: float,
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the repairs that apply, from the cheapest."""
    yield "none", lambda: None
    if any(isinstance(m, _NormBase) and m.running_mean is not None for m in model.modules()):
        yield "batch_norm", lambda: recalibrate_all(model, data)
    known = [layer for layer in find_rows(model) if layer.name in masks]
    transforming = find_transforming(model, known, data.batches)
    known = [layer for layer in known if layer.name not in transforming]
    layers = order_layers(model, known, data.batches)
    yield "refit", lambda: refit_layers(model, dense, layers, masks, data, damping)
    yield "joint", lambda: refit_jointly(model, dense, layers, masks, data)
    if train is not None:
        yield "training", lambda: _train(model, train)


def _train(model: nn.Module, train: Callable[[nn.Module], object]) -> None:
    with torch.enable_grad():
        train(model)


def recalibrate_all(model: nn.Module, data: Data) -> None:
    """Estimate batch-norm statistics on the data, as means over all ranks."""
    recalibrate(model, data.batches)
    if data.total is not None:
        ranks = data.total(torch.ones(()))
        for module in model.modules():
            if isinstance(module, _NormBase) and module.running_mean is not None:
                for statistic in (module.running_mean, module.running_var):
                    assert statistic is not None
                    statistic.copy_(data.total(statistic.clone()) / ranks.to(statistic))


def agreement_with(dense: nn.Module, data: Data) -> Measure:
    """Return a measure: the share of examples for which a model chooses the dense one's class."""
    classes = [_classes(dense, batch) for batch in data.batches]

    def measure(model: nn.Module) -> float:
        pairs = zip(data.batches, classes, strict=True)
        counts = torch.zeros(2, dtype=torch.float64)
        for batch, dense_classes in pairs:
            same = _classes(model, batch) == dense_classes
            counts += torch.tensor([int(same.sum()), same.numel()])
        same_count, count = counts if data.total is None else data.total(counts)
        return float(same_count / count)

    return measure


@torch.no_grad()
def _classes(model: nn.Module, batch: Any) -> Tensor:
    with eval_mode(model):
        return class_logits(bound_forward(model, batch)()).argmax(1)


def _copy_state(model: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(model.state_dict())
