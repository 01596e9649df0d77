# SPDX-License-Identifier: MIT
"""Latency budgets, tables, timer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regrow.channels.cut.surgery import UndoLog, cut, tell_modules
from regrow.channels.cut.verify import TrialCut
from regrow.profiling.latency import latency
from regrow.utils.batches import batch_size, bound_forward, device_of, resize_batch
from regrow.utils.errors import ConfigError, DataError, check_positive, write_error
from regrow.utils.modes import eval_mode
from regrow.utils.names import modules


class LatencyTimer:
    """Times networks on batches of one size, and remembers how long the original took.

    Args:
        timer: What tells a model's milliseconds; None: the median measured here.
        example_input: A batch; its size counts, not its values.

    Example:
        >>> watch = LatencyTimer(lambda model: 2.0, torch.zeros(8, 4))
        >>> watch.size, watch(nn.Linear(4, 2), torch.zeros(2, 4))
        (8, 2.0)
    """

    def __init__(self, timer: Callable[[nn.Module], float] | None, example_input: Any) -> None:
        self.timer = timer
        self.size = batch_size(example_input)
        self._original = 0.0

    def __call__(self, model: nn.Module, example: Any) -> float:
        """Milliseconds of a pass.

        Args:
            model: The model.
            example: A few examples, repeated to the batch's size.
        """
        if self.timer is not None:
            return self.timer(model)
        return latency(model, resize_batch(example, self.size), repeats=20, warmup=3).median_ms

    def original(self, model: nn.Module, example: Any) -> float:
        """How long the original model takes; measured once, before anything is cut."""
        if not self._original:
            self._original = self(model, example)
        return self._original

    def state_dict(self) -> dict[str, Any]:
        return {"size": self.size, "original": self._original}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.size, self._original = int(state["size"]), float(state["original"])


ROUNDS = 7  # halvings of the share of MACs: to less than a hundredth


def latency_budget(
    chosen: Callable[[float], dict[str, Tensor]],
    bench: TrialCut,
    model: nn.Module,
    example_input: Any,
    sparsity: float,
    latency_ms: float | None = None,
    timer: Callable[[nn.Module], float] | None = None,
) -> dict[str, Tensor]:
    """The least cut whose measured latency meets the budget.

    Args:
        chosen: The channels to remove so that a share of the MACs remains.
        bench: Makes cuts.
        model: The dense model.
        example_input: A batch; its size is that of the figure.
        sparsity: Fraction of the dense latency to save.
        latency_ms: How long a pass may take, instead.
        timer: What tells a model's milliseconds; None: the median measured here.

    Raises:
        ConfigError: If no cut is fast enough, with the fastest one's figure.
    """
    timed = timer or (lambda m: latency(m, example_input, repeats=20, warmup=3).median_ms)
    dense = timed(model)
    limit = (1 - sparsity) * dense
    if latency_ms is not None:
        limit = check_positive("latency_ms", latency_ms, "latency_ms=5.0")
    if dense <= limit:
        return {}
    low, high, best = 0.0, 1.0, None
    fastest = dense
    for _ in range(ROUNDS):
        share = (low + high) / 2
        try:
            removed = chosen(share)
        except ConfigError:  # so few MACs cannot be reached
            low = share
            continue
        undo = bench.find_valid(removed).undo
        try:
            found = timed(model)
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


Rows = Mapping[str, Sequence[Sequence[float]]]


FRACTIONS = (0.25, 0.5, 0.75, 1.0)


class LatencyTable:
    """Milliseconds of each layer by its inputs and outputs; a model's are their sum.

    Between measured sizes the work (inputs * outputs) is interpolated linearly. What stands
    between the layers (activations, pooling) is not counted.

    Args:
        layers: For each layer's name rows of (inputs, outputs, milliseconds).
        device: Where it was measured.
        batch: Examples a pass.

    Raises:
        ConfigError: For rows that cannot be meant.

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
        """The model's milliseconds.

        Raises:
            ConfigError: If a layer of the table is not in the model.
        """
        total = 0.0
        layers = modules(model)
        for name, rows in self.layers.items():
            weight = getattr(layers.get(name), "weight", None)
            if not isinstance(weight, Tensor) or weight.ndim < 2:
                raise ConfigError(f"the latency table has layer {name!r}, the model has not")
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
        """Times every convolution and linear layer alone, at fractions of its outputs and inputs.

        Args:
            model: The dense model, where it is to run.
            example_input: A batch; its size is that of the figures.
            fractions: Of the layer's channels; grouped convolutions are timed whole.
            repeats: Passes measured, of which the median counts.
        """
        layers: dict[str, list[tuple[float, float, float]]] = {}
        for name, given in _inputs(model, example_input).items():
            layer = modules(model)[name]
            rows = []
            for fraction in sorted({*fractions, 1.0}):
                whole = fraction == 1 or getattr(layer, "groups", 1) > 1
                found = _timed(layer, given, 1.0 if whole else fraction, repeats)
                rows.append(found)
            layers[name] = sorted({row[:2]: row for row in rows}.values())
        batch = len(next(iter(_inputs(model, example_input).values())))
        return cls(layers, device=str(device_of(model)), batch=batch)

    def save(self, path: str | Path) -> None:
        """Writes JSON, aside and then renamed."""
        path = Path(path)
        text = {"device": self.device, "batch": self.batch, "layers": self.layers}
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            aside.write_text(json.dumps(text, indent=1) + "\n")
            aside.replace(path)
        except OSError as error:
            raise write_error(path, error) from error
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Reads what `save` wrote.

        Raises:
            DataError: If it is not there, or not such a table.
        """
        try:
            held = json.loads(Path(path).read_text())
            return cls(held["layers"], device=held["device"], batch=held["batch"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no latency table: {error}") from error


def _inputs(model: nn.Module, example_input: Any) -> dict[str, Tensor]:
    """What each convolution and linear layer gets."""
    found: dict[str, Tensor] = {}

    def seen(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.setdefault(name, args[0].detach())

        return hook

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [
        module.register_forward_pre_hook(seen(name))
        for name, module in modules(model).items()
        if isinstance(module, kinds)
    ]
    try:
        with eval_mode(model), torch.no_grad():
            bound_forward(model, example_input)()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _timed(
    layer: nn.Module, given: Tensor, fraction: float, repeats: int
) -> tuple[float, float, float]:
    """(inputs, outputs, milliseconds) of a layer with a fraction of its channels."""
    outputs, inputs = (max(1, round(fraction * size)) for size in _sizes(layer))
    weight = layer.weight
    assert isinstance(weight, Tensor)
    undo, dim = UndoLog(), -1 if isinstance(layer, nn.Linear) else 1
    kept = {
        "weight": {0: torch.arange(weight.shape[0]) < outputs},
        "bias": {0: torch.arange(weight.shape[0]) < outputs},
    }
    if getattr(layer, "groups", 1) == 1:
        kept["weight"][1] = torch.arange(weight.shape[1]) < inputs
        given = given.narrow(dim, 0, inputs).contiguous()
    try:
        if fraction < 1:
            cut(layer, kept, undo)
            tell_modules(layer, kept, undo)
        return inputs, outputs, latency(layer, given, repeats=repeats).median_ms
    finally:
        undo()


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a layer's weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0], weight.shape[1]
