# SPDX-License-Identifier: MIT
"""The largest sparsity that a trained network keeps its accuracy at, without training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from regrow.calibration.calibrate import (
    Calibration,
    calibrated_layers,
    inputs_of,
    refit_layers,
)
from regrow.calibration.fidelity import Fidelity, measure_fidelity, output_loss
from regrow.calibration.knapsack import Knapsack
from regrow.calibration.layer_database import LayerRecord, record_layers
from regrow.calibration.layer_rows import LayerRows
from regrow.calibration.layer_times import measure_layers
from regrow.calibration.moments import Data, order_layers
from regrow.masks.masks import Masks
from regrow.profiling.macs import positions
from regrow.utils.batches import Batches, batches_of
from regrow.utils.errors import (
    ConfigError,
    StateError,
    check_choice,
    check_count,
    check_damping,
    check_sparsity,
)
from regrow.utils.modes import eval_mode
from regrow.utils.names import named_parameters
from regrow.utils.progress_bar import progress_bar

CRITERIA = ("obs", "wanda", "ria", "magnitude")
COSTS = ("params", "macs", "latency")
LADDER = tuple(1 - 0.7**k for k in range(1, 13))  # up to 98.6 %
PARTS = 5  # of each step of the ladder, between which losses are interpolated
Evaluate = Callable[[nn.Module], float]
LayerCost = Callable[[str, float], float]


@dataclass(frozen=True)
class Trial:
    """One network that the search tried.

    Attributes:
        removed: Fraction of the cost that is removed.
        sparsity: Fraction of the prunable weights that are masked.
        score: Its accuracy, agreement or own metric.
        drop: What it lost of that, and `margin` standard errors.
        holds: Whether that is at most `max_drop`.
    """

    removed: float
    sparsity: float
    score: float
    drop: float
    holds: bool


@dataclass(frozen=True)
class FreeSparsity:
    """The result of `free_sparsity`.

    Attributes:
        of: The cost that was to be removed: "params", "macs", "latency" or "cost".
        removed: Fraction of it that is removed, of the prunable layers.
        metric: "accuracy", "agreement" (with the dense network), or "evaluate".
        before, after: The metric of the dense and of the pruned network.
        fidelity: How the pruned network classifies: KL divergence, agreement, damage by class;
            None with `evaluate`.
        trials: All networks that were tried, in order of `removed`.
        masks: Masks for `regrow.enforce`.
        values, dense: Pruned and dense values of the parameters that `apply` changes.
    """

    of: str
    removed: float
    metric: str
    before: float
    after: float
    fidelity: Fidelity | None
    trials: tuple[Trial, ...]
    masks: Masks
    values: Mapping[str, Tensor]
    dense: Mapping[str, Tensor]

    @property
    def sparsity(self) -> float:
        """The masked fraction of the prunable weights."""
        return self.masks.sparsity

    @property
    def layers(self) -> dict[str, float]:
        """The sparsity of each layer."""
        return {name: 1 - self.masks.density(name) for name in self.masks}

    def apply(self, model: nn.Module) -> None:
        """Prune the model: masked weights become +0.0, kept ones and biases are the refitted."""
        Calibration(self.masks, dense=dict(self.values)).undo(model)

    def undo(self, model: nn.Module) -> None:
        """Restore the dense network, bit-exactly."""
        Calibration(self.masks, dense=dict(self.dense)).undo(model)


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the search of `free_sparsity`.

    Attributes:
        criterion: "obs", "wanda", "ria" or "magnitude".
        sparsities: The ladder at which each layer is recorded.
        samples: Number of examples for calibration.
        margin: Number of standard errors of the loss that count as lost.
        resolution: Fraction of the cost at which the search ends.
        damping: Ridge term, as a fraction of the mean squared input.
        max_rows: Largest number of output positions per batch that are sampled for a layer.
        seed: For that draw.

    Raises:
        ConfigError: For other values.
    """

    criterion: str = "obs"
    sparsities: Sequence[float] = LADDER
    samples: int = 1024
    margin: float = 2.0
    resolution: float = 0.005
    damping: float = 1e-3
    max_rows: int = 16384
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("criterion", self.criterion, CRITERIA)
        check_count("samples", self.samples)
        check_damping(self.damping)
        check_sparsity("resolution", self.resolution, zero=False)
        for value in self.sparsities:
            check_sparsity("sparsities", value, zero=False)
        if not self.sparsities:
            raise ConfigError("sparsities must be numbers in (0, 1), got none: leave it out")

    @property
    def ladder(self) -> list[float]:
        """The sparsities, rising."""
        return sorted({*map(float, self.sparsities)})

    @property
    def steps(self) -> int:
        """The number of networks that the search tries, at most."""
        return max(1, math.ceil(math.log2(1 / self.resolution)))


def free_sparsity(
    model: nn.Module,
    data: Batches,
    max_drop: float = 0.005,
    *,
    of: str | LayerCost = "params",
    validation: Batches | None = None,
    evaluate: Evaluate | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    **settings: Any,
) -> FreeSparsity:
    """Find the largest sparsity that loses at most `max_drop`, without training.

    Each layer is pruned and refitted alone at a ladder of sparsities, and the loss of the network
    recorded: the KL divergence from the dense one, or with `evaluate` the squared error of the
    outputs. A dynamic program divides a budget among layers with the least sum of losses. The
    budget is found by bisection: each network is refitted layer by layer, and judged. Memory:
    three copies of the weights, the inputs, second moments of up to 1 GiB (or of one layer).

    Args:
        model: A trained model; it is unchanged, `result.apply(model)` prunes it.
        data: Batches in random order, as for `regrow.calibrate`; labels are used only to judge.
        max_drop: What the metric may lose, two standard errors included: 0.005 is half a point.
        of: What to remove: "params", "macs", "latency" (of layers, see `measure_layers`), or a
            cost `(weight name, sparsity) -> number`.
        validation: Batches to judge by, read for each trial, or a data module with a
            `val_dataloader`; None: those of `data` after the first `samples` examples, held in
            memory.
        evaluate: Returns a metric, higher is better; None: the accuracy where there are labels,
            else the agreement with the dense network.
        include: Patterns of parameters to prune; None: see `regrow.calibrate`.
        exclude: Patterns of parameters not to prune.
        settings: Those of `SearchSettings`.

    Raises:
        ConfigError: For invalid settings, too little data, or outputs that are no logits.

    Source: Frantar and Alistarh 2022, arXiv 2208.11580 (OBC) and 2201.13096 (SPDY).

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> result = free_sparsity(net, torch.randn(4096, 8).split(256), 0.1)
        >>> result.metric, result.before, result.sparsity > 0
        ('agreement', 1.0, True)
    """
    _check_max_drop(max_drop, evaluate)
    chosen, batches = SearchSettings(**settings), iter(batches_of(data))
    used = Data(inputs_of(model, batches, chosen.samples), chosen.max_rows, chosen.seed)
    held = [] if evaluate is not None else _judged_batches(batches, validation, chosen.samples)
    layers = order_layers(
        model, calibrated_layers(model, include, exclude), used.batches[:1], all_run=True
    )
    cost = _layer_cost(of, model, layers, used.batches[0])
    found = _search(model, layers, used, cost, held, evaluate, max_drop, chosen)
    return replace(found, of=of) if isinstance(of, str) else found


def _search(
    model: nn.Module,
    layers: Sequence[LayerRows],
    data: Data,
    cost: LayerCost,
    held: Iterable[Any],
    evaluate: Evaluate | None,
    max_drop: float,
    settings: SearchSettings,
) -> FreeSparsity:
    """Record the layers and search; restore the model."""
    dense, damping = copy.deepcopy(model), settings.damping
    loss = output_loss(model, data.batches, classifies=evaluate is None)
    ladder, criterion = settings.ladder, settings.criterion
    rows = record_layers(model, layers, data, ladder, loss, criterion=criterion, damping=damping)

    def judge() -> tuple[float, Fidelity | None]:
        if evaluate is not None:
            return _own_metric(model, evaluate), None
        fidelity = measure_fidelity(model, dense, held)
        return fidelity.score, fidelity

    try:
        with progress_bar(len(layers) + settings.steps + 1) as advance:
            records = []
            for layer in layers:
                advance(f"ladder of {layer.name}")
                records.append(next(rows).interpolated(PARTS))

            def prune(masks: Masks) -> None:
                advance(f"sparsity {masks.sparsity:.1%}")
                _write(model, named_parameters(dense))
                refit_layers(model, dense, layers, masks, data, damping)

            return _bisect(model, _Budget(records, cost), prune, judge, max_drop, settings)
    finally:
        _write(model, named_parameters(dense))


def _check_max_drop(max_drop: object, evaluate: Evaluate | None) -> None:
    number = isinstance(max_drop, Real) and not isinstance(max_drop, bool)
    if not number or not 0 <= float(max_drop) < (1 if evaluate is None else math.inf):  # type: ignore
        raise ConfigError(
            f"max_drop is a fraction of the examples, got {max_drop!r}: write max_drop=0.005 for "
            "half a point"
        )


class _Budget:
    """Divides a budget among layers, with the least sum of recorded losses."""

    def __init__(self, records: Sequence[LayerRecord], cost: LayerCost) -> None:
        self.records = records
        self.costs = [[cost(r.layer.name, s) for s in r.sparsities] for r in records]
        self.total = sum(costs[0] for costs in self.costs)
        if not self.total > 0:
            raise ConfigError(f"the dense layers must cost more than 0, got {self.total:g}")
        self.knapsack = Knapsack([record.losses for record in records], self.costs)
        self.most = 1 - self.knapsack.least / self.total

    def divide(self, removed: float) -> tuple[float, Masks]:
        """Return masks that remove at least a fraction of the cost, and what they remove."""
        levels = self.knapsack.choose((1 - removed) * self.total)
        left = sum(costs[k] for costs, k in zip(self.costs, levels, strict=True))
        pairs = zip(self.records, levels, strict=True)
        masks = Masks({r.layer.name: r.mask(r.sparsities[k]) for r, k in pairs})
        return 1 - left / self.total, masks


def _bisect(
    model: nn.Module,
    budget: _Budget,
    prune: Callable[[Masks], None],
    judge: Callable[[], tuple[float, Fidelity | None]],
    max_drop: float,
    settings: SearchSettings,
) -> FreeSparsity:
    """Search between nothing and everything that the ladders can remove."""
    dense = {name: p.detach().clone() for name, p in named_parameters(model).items()}
    before, fidelity = judge()
    best = FreeSparsity(
        of="cost",
        removed=0.0,
        metric=_metric_name(fidelity),
        before=before,
        after=before,
        fidelity=fidelity,
        trials=(),
        masks=Masks({r.layer.name: r.mask(0.0) for r in budget.records}),
        values={},
        dense={},
    )
    trials = []
    low, high = 0.0, budget.most
    while high - low > settings.resolution:
        middle = (low + high) / 2
        removed, masks = budget.divide(middle)
        prune(masks)
        after, fidelity = judge()
        lost = before - after + (0.0 if fidelity is None else settings.margin * fidelity.error)
        holds = lost <= max_drop + 1e-9
        trials.append(Trial(removed, masks.sparsity, after, lost, holds))
        if not holds:
            high = middle
            continue
        low = max(middle, removed)
        now = {name: p.detach() for name, p in named_parameters(model).items()}
        changed = {name for name in now if not torch.equal(now[name], dense[name])}
        best = replace(
            best,
            removed=removed,
            after=after,
            fidelity=fidelity,
            masks=masks,
            values={name: now[name].clone() for name in changed},
            dense={name: dense[name] for name in changed},
        )
    return replace(best, trials=tuple(sorted(trials, key=lambda trial: trial.removed)))


def _metric_name(fidelity: Fidelity | None) -> str:
    if fidelity is None:
        return "evaluate"
    return "agreement" if fidelity.accuracy is None else "accuracy"


def _judged_batches(rest: Iterator[Any], validation: Batches | None, samples: int) -> Iterable[Any]:
    """Return the batches to judge by, which can be read many times."""
    if validation is not None:
        if isinstance(validation, Iterator):
            raise ConfigError(
                "validation is read once for each trial, got an iterator: pass the loader itself, "
                "or list(batches)"
            )
        return batches_of(validation, validate=True)
    if held := list(rest):
        return held
    raise ConfigError(
        f"data has no examples but the {samples} that calibrate, so that nothing is left to judge "
        "by: pass validation=loader, or write a lower samples="
    )


def _layer_cost(
    of: str | LayerCost, model: nn.Module, layers: Sequence[LayerRows], batch: Any
) -> LayerCost:
    """Return the cost of a layer at a sparsity."""
    if not isinstance(of, str):
        return of
    if check_choice("of", of, COSTS) == "latency":
        return measure_layers(model, layers, batch)
    sizes = {layer.name: layer.weight.numel() for layer in layers}
    uses = positions(model, batch) if of == "macs" else dict.fromkeys(sizes, 1.0)
    if unknown := [name for name in sizes if name not in uses]:
        raise ConfigError(
            f"the MACs of {', '.join(unknown)} are unknown, since the forward pass multiplies by "
            f"values that it computes from them: write of='params', or exclude={unknown}"
        )
    return lambda name, sparsity: uses[name] * (sizes[name] - round(sparsity * sizes[name]))


def _own_metric(model: nn.Module, evaluate: Evaluate) -> float:
    """Return the user's metric; it must be finite."""
    with eval_mode(model), torch.no_grad():
        value = float(evaluate(model))
    if not math.isfinite(value):
        raise StateError(f"evaluate must return a finite number, higher is better, got {value}")
    return value


@torch.no_grad()
def _write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, parameter in named_parameters(model).items():
        if name in values:
            parameter.copy_(values[name])
