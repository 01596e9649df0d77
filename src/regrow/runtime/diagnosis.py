# SPDX-License-Identifier: MIT
"""Which inference runtimes would use the zeros and shapes of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from regrow.profiling.macs import positions
from regrow.runtime.layer_inputs import layer_inputs
from regrow.runtime.rules import RULES, Layer, Obstacle, Rule
from regrow.runtime.sparse_layers import check_dense
from regrow.utils.display import align_columns
from regrow.utils.errors import ConfigError, join_limited
from regrow.utils.names import strip_compile_prefix

_SMALL = 0.01  # a layer with a smaller share of the MACs is left out of the rows


@dataclass(frozen=True)
class Finding:
    """What one runtime makes of a model.

    Attributes:
        rule: The runtime, what it needs, and the sources.
        share: The share of the MACs in layers that fit the rule.
        obstacles: Why the other layers do not, by name.
        main: That whose change would let most of the other MACs fit; None if all layers fit.
    """

    rule: Rule
    share: float
    obstacles: Mapping[str, Obstacle]
    main: Obstacle | None


@dataclass(frozen=True)
class Diagnosis:
    """What runtimes would make of a model; `str()` gives two tables.

    Attributes:
        layers: The layers that were looked at.
        findings: One for each runtime.
        left_out: Layers that compute their weight, as weight norm does.
    """

    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...] = ()

    def runtimes_of(self, name: str) -> tuple[str, ...]:
        """Return the runtimes whose rules a layer fits, by the name of its weight."""
        return tuple(f.rule.runtime for f in self.findings if name not in f.obstacles)

    def layer_rows(self) -> list[tuple[str, ...]]:
        """Return a heading, and the cells of the layers with at least 1 % of the MACs."""
        total, rows = sum(layer.macs for layer in self.layers), list[tuple[str, ...]]()
        for layer in self.layers:
            if layer.macs >= _SMALL * total:
                shares = f"{layer.sparsity:.1%}", f"{layer.macs / total:.1%}"
                runtimes = ", ".join(self.runtimes_of(layer.name)) or "none"
                rows.append((layer.name, *shares, runtimes))
        return [("layer", "zeros", "MACs", "fits"), *rows]

    def runtime_rows(self) -> list[tuple[str, ...]]:
        """Return a heading, and the cells of each runtime."""
        rows = [
            (
                f.rule.runtime,
                f"{f.share:.1%}",
                f.rule.needs,
                ": ".join(f.main or ["all layers fit"]),
            )
            for f in self.findings
        ]
        return [("runtime", "fits", "it needs", "obstacle: change"), *rows]

    def __str__(self) -> str:
        tables = [align_columns(rows) for rows in (self.layer_rows(), self.runtime_rows())]
        return "\n\n".join([*tables, *([self.note()] if self.left_out else [])])

    def note(self) -> str:
        """Return which layers were left out, and what to do; empty if none were."""
        if not self.left_out:
            return ""
        return (
            f"left out, of the MACs too: {join_limited(self.left_out)}, which compute their weight "
            "in each pass: store it instead, as torch.nn.utils.parametrize.remove_parametrizations "
            "does"
        )


def diagnose(model: nn.Module, example_input: Any) -> Diagnosis:
    """Say which runtimes would use the zeros and shapes of a model, and what to change.

    Each Linear layer and convolution is held against the documented or measured conditions of
    PyTorch, TensorRT, LiteRT, ExecuTorch, ONNX Runtime, OpenVINO and Core ML. Nothing is timed;
    one forward pass counts MACs. Recurrent layers, the input projections of
    `nn.MultiheadAttention` and layers that compute their weight are left out; the last are named.

    Args:
        model: The pruned model; not changed.
        example_input: A batch; a tuple holds positional arguments, a dict keyword arguments.

    Returns:
        Layers and findings; `print` shows them as tables.

    Raises:
        ConfigError: If the example reaches no Linear layer or convolution of the model.
        StateError: If the model is accelerated, or has no values.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> _ = model[2].weight.data.zero_()
        >>> diagnose(model, torch.zeros(1, 64)).runtimes_of("2.weight")
        ('PyTorch CPU', 'TensorRT 2:4', 'tensor cores', 'Core ML')
    """
    check_dense(model)
    used, layers = positions(model, example_input), list[Layer]()
    known = {p: m for p, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd)}
    run = layer_inputs(model, known, example_input)
    left_out = []
    for path, module in known.items():
        name = strip_compile_prefix(f"{path}.weight").lstrip(".")
        if name in used:
            layers.append(Layer(name, module, used[name] * module.weight.numel()))
        elif path in run and module.weight.numel():
            left_out.append(name)
    found = Diagnosis(tuple(layers), tuple(_find(rule, layers) for rule in RULES), tuple(left_out))
    if not layers:
        raise ConfigError(
            found.note() or "the example reaches no Linear layer or convolution of the model"
        )
    return found


def _find(rule: Rule, layers: Sequence[Layer]) -> Finding:
    """Hold the layers against a rule."""
    found = {layer: rule.check(layer, layers) for layer in layers}
    hindered = {layer: obstacle for layer, obstacle in found.items() if obstacle is not None}
    total, macs = sum(layer.macs for layer in layers), defaultdict[object, float](float)
    for layer, obstacle in hindered.items():
        macs[obstacle.change] += layer.macs
        macs[obstacle] += layer.macs
    return Finding(
        rule,
        1 - sum(layer.macs for layer in hindered) / max(total, 1),
        {layer.name: obstacle for layer, obstacle in hindered.items()},
        max(hindered.values(), key=lambda x: (macs[x.change], macs[x]), default=None),
    )
