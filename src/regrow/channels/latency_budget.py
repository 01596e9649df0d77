# SPDX-License-Identifier: MIT
"""Latency budgets, and tables and timers of latency."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from regrow.channels.cut.surgery import UndoLog, cut, tell_modules
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.preserve import preserve_state
from regrow.channels.size import run_with_hooks
from regrow.io.files import write_json
from regrow.profiling.latency import Speedup, compare_latency, latencies, latency
from regrow.utils.batches import batch_size, device_of, resize_batch
from regrow.utils.errors import ConfigError, DataError
from regrow.utils.names import modules

Rows = Mapping[str, Sequence[Sequence[float]]]

ROUNDS = 7  # bisection steps over the share of MACs: to less than a hundredth
PASSES = 40  # timed passes of each cut that is tried
FRACTIONS = (0.25, 0.5, 0.75, 1.0)


class LatencyTimerState(TypedDict):
    """State of `LatencyTimer`."""

    size: int  # of the batch
    original: float  # milliseconds of the original model; 0: unknown


class LatencyTimer:
    """Measures models, by `timer` or in turns with a copy of the original one.

    Milliseconds are those of the original model, measured once, times the ratio of medians: load
    on the machine that comes later affects both models and does not count.
    """

    def __init__(
        self,
        timer: Callable[[nn.Module], float] | None,
        example_input: Any,
        original: nn.Module | None = None,
    ) -> None:
        self.timer = timer
        self.size = batch_size(example_input)
        self._copy = _copied(original) if timer is None and original is not None else None
        self._original = 0.0  # milliseconds; 0: not known yet

    def __call__(self, model: nn.Module, example: Any) -> float:
        """Return the milliseconds of a forward pass, on examples repeated to the batch's size."""
        if self.timer is not None:
            return self.timer(model)
        assert self._copy is not None
        with preserve_state(model):
            given = resize_batch(example, self.size)
            turn = [self._copy, model, self._copy]  # caches as cold as for `speedup`
            first, own, _ = latencies(turn, given, repeats=PASSES)
        return self.original(model, example) * own.median_ms / first.median_ms

    def original(self, model: nn.Module, example: Any) -> float:
        """Return the milliseconds of the original model; measured at the first call only."""
        if not self._original and self._copy is not None:
            given = resize_batch(example, self.size)
            self._original = latency(self._copy, given, repeats=PASSES).median_ms
        elif not self._original:
            self._original = self(model, example)
        return self._original

    def speedup(self, model: nn.Module, example: Any) -> Speedup | None:
        """Return how much faster a model is than the original, with an interval; None: a timer."""
        if self._copy is None:
            return None
        with preserve_state(model):
            return compare_latency(self._copy, model, resize_batch(example, self.size)).speedup

    def state_dict(self) -> LatencyTimerState:
        return {"size": self.size, "original": self._original}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.size, self._original = int(state["size"]), float(state["original"])


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model, without copying the Trainer of a LightningModule."""
    trainer = vars(model).get("_trainer")
    try:
        return copy.deepcopy(model, {id(trainer): trainer})
    except Exception as error:
        raise ConfigError(
            f"of='latency' measures beside a copy of {type(model).__name__}, which cannot be "
            f"copied: {error}; give timer=, a function of the model that returns milliseconds"
        ) from error


def latency_budget(
    choose: Callable[[float], dict[str, Tensor]],
    macs: float,
    trial: TrialCut,
    timer: Callable[[nn.Module], float],
    dense: float,
    limit: float,
) -> dict[str, Tensor]:
    """Find the smallest cut whose latency meets a limit in milliseconds, by bisection over MACs.

    `choose` returns the channels to remove so that some MACs remain; `macs` and the milliseconds
    `dense` are those of the model without a cut.
    """
    if dense <= limit:
        return {}
    low, high, best, fastest = 0.0, 1.0, None, dense
    for _ in range(ROUNDS):
        share = (low + high) / 2
        try:
            removed = choose(share * macs)
        except ConfigError:  # so few MACs cannot be reached
            low = share
            continue
        undo = trial.find_valid(removed).undo
        try:
            found = timer(trial.model)
        finally:
            undo()
        fastest = min(fastest, found)
        if found <= limit:
            low, best = share, removed
        else:
            high = share
    if best is None:
        raise ConfigError(
            f"a latency of {limit:.3g} ms cannot be reached: the dense model takes {dense:.3g} ms, "
            f"the fastest cut tried {fastest:.3g} ms; ask for more milliseconds, or lower "
            "min_channels"
        )
    return best


class LatencyTable:
    """Latencies of layers by their inputs and outputs; a model's latency is their sum.

    Between measured sizes the latency is linear in inputs * outputs. Activations, pooling and other
    operations between the layers are not counted.

    Args:
        layers: Rows of (inputs, outputs, milliseconds) by layer name.
        device: Where it was measured.
        batch: Batch size.

    Raises:
        ConfigError: For rows that are not three positive numbers.

    Example:
        >>> table = LatencyTable({"0": [(4, 4, 1.0), (4, 8, 2.0)]})
        >>> table(nn.Sequential(nn.Linear(4, 6)))
        1.5
    """

    def __init__(self, layers: Rows, *, device: str = "", batch: int = 1) -> None:
        for name, rows in layers.items():
            if not rows or any(len(row) != 3 or not min(row) > 0 for row in rows):
                raise ConfigError(
                    f"the rows of {name} must be (inputs, outputs, milliseconds), all above 0, got "
                    f"{rows!r}"
                )
        self.layers = {
            name: [tuple(map(float, row)) for row in rows] for name, rows in layers.items()
        }
        self.device, self.batch = device, batch

    def __call__(self, model: nn.Module) -> float:
        """Return a model's milliseconds; raise `ConfigError` if it lacks a layer of the table."""
        total = 0.0
        layers = modules(model)
        for name, rows in self.layers.items():
            weight = getattr(layers.get(name), "weight", None)
            if not isinstance(weight, Tensor) or weight.ndim < 2:
                raise ConfigError(f"the latency table has layer {name!r}, which the model lacks")
            known = sorted((inputs * outputs, ms) for inputs, outputs, ms in rows)
            work = [inputs for inputs, _ in known]
            outputs, inputs = _sizes(layers[name])
            total += float(np.interp(outputs * inputs, work, [ms for _, ms in known]))
        return total

    @classmethod
    def measure(
        cls,
        model: nn.Module,
        example_input: Any,
        *,
        fractions: Sequence[float] = FRACTIONS,
        repeats: int = 20,
    ) -> LatencyTable:
        """Measure each convolution and linear layer alone, with fractions of its channels.

        Args:
            model: The dense model, on the device to measure.
            example_input: A batch.
            fractions: Fractions of outputs and inputs; grouped convolutions are measured whole.
            repeats: Number of forward passes; the median is stored.
        """
        inputs = _layer_inputs(model, example_input)
        layers: dict[str, list[tuple[float, float, float]]] = {}
        for name, given in inputs.items():
            layer = modules(model)[name]
            rows = []
            for fraction in sorted({*fractions, 1.0}):
                whole = fraction == 1 or getattr(layer, "groups", 1) > 1
                rows.append(_measure_layer(layer, given, 1.0 if whole else fraction, repeats))
            layers[name] = sorted({row[:2]: row for row in rows}.values())
        batch = len(next(iter(inputs.values())))
        return cls(layers, device=str(device_of(model)), batch=batch)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, atomically."""
        write_json(Path(path), {"device": self.device, "batch": self.batch, "layers": self.layers})

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table; raise `DataError` if there is none."""
        try:
            table = json.loads(Path(path).read_text())
            return cls(table["layers"], device=table["device"], batch=table["batch"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no latency table: {error}") from error


def _layer_inputs(model: nn.Module, example_input: Any) -> dict[str, Tensor]:
    """Return the input of each convolution and linear layer, at its first call."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    names: dict[nn.Module, str] = {
        layer: name for name, layer in modules(model).items() if isinstance(layer, kinds)
    }
    found: dict[str, Tensor] = {}

    def store(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        found.setdefault(names[layer], args[0].detach())

    run_with_hooks(model, example_input, dict.fromkeys(names, store))
    return found


def _measure_layer(
    layer: nn.Module, given: Tensor, fraction: float, repeats: int
) -> tuple[float, float, float]:
    """Return (inputs, outputs, milliseconds) of a layer with a fraction of its channels."""
    rows, columns = _sizes(layer)
    outputs, inputs = (max(1, round(fraction * size)) for size in (rows, columns))
    undo, dim = UndoLog(), -1 if isinstance(layer, nn.Linear) else 1
    keep = torch.arange(rows) < outputs
    kept = {"weight": {0: keep}, "bias": {0: keep}}
    if getattr(layer, "groups", 1) == 1:
        kept["weight"][1] = torch.arange(columns) < inputs
        given = given.narrow(dim, 0, inputs).contiguous()
    try:
        if fraction < 1:
            cut(layer, kept, undo)
            tell_modules(layer, kept, undo)
        return inputs, outputs, latency(layer, given, repeats=repeats).median_ms
    finally:
        undo()


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Return (outputs, inputs) of a layer's weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0], weight.shape[1]
