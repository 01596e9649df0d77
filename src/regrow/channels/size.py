# SPDX-License-Identifier: MIT
"""Count the channels, parameters or MACs that remain after a cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from regrow.channels.cut.surgery import RemovedChannels
from regrow.channels.graph.groups import Group, Place
from regrow.channels.graph.preserve import preserve_state
from regrow.profiling.macs import Work, count_macs
from regrow.utils.batches import batch_size, bound_forward
from regrow.utils.errors import check_choice
from regrow.utils.modes import in_mode
from regrow.utils.names import modules, parameters, raw_weights

UNITS = ("channels", "macs", "params")


class Sizes:
    """Sizes of a model without some channels, in one unit: "channels", "macs" or "params".

    Each weight costs one MAC at each output position; products without weights (attention) count
    with their present size. `dense` is the size before any cut.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], example_input: Any, of: str
    ) -> None:
        self.of = check_choice("of", of, UNITS)
        self._total = sum(group.size for group in groups)
        self._shapes = {name: tuple(p.shape) for name, p in parameters(model).items()}
        self._weights, self._rest = dict.fromkeys(self._shapes, 1.0), 0.0
        if of == "macs":
            work = count_work(model, example_input)
            used = _derived_positions(model, example_input, work.positions) | work.positions
            self._weights = {n: used.get(n, 0.0) for n in self._shapes}
            counted = (n * math.prod(self._shapes[name]) for name, n in self._weights.items())
            self._rest = work.macs - sum(counted)
        # number of positions of each channel in each member
        self._places: dict[str, dict[Place, Tensor]] = {
            group.name: {
                place: torch.bincount(channels[channels >= 0], minlength=group.size)
                for place, channels in group.members.items()
                if place[0] in self._shapes
            }
            for group in groups
        }
        self.dense = self.after({})

    def after(self, removed: RemovedChannels) -> float:
        """Return the size without some channels."""
        if self.of == "channels":
            return float(self._total - sum(len(channels) for channels in removed.values()))
        gone: dict[str, list[int]] = {}
        for name, channels in removed.items():
            for (tensor, dim), counts in self._places[name].items():
                dims = gone.setdefault(tensor, [0] * len(self._shapes[tensor]))
                dims[dim] += int(counts[channels].sum())
        total = self._rest
        for name, shape in self._shapes.items():
            product = self._weights[name]
            for size, less in zip(shape, gone.get(name, [0] * len(shape)), strict=True):
                product *= size - less
            total += product
        return total


def _derived_positions(
    model: nn.Module, example_input: Any, known: Mapping[str, float]
) -> dict[str, float]:
    """Count positions of weights that a layer changes before use, such as standardised ones."""
    found: dict[str, float] = {}
    batch = batch_size(example_input)

    def count(module: nn.Module, given: Any, out: Tensor) -> None:
        channels = out.shape[-1 if isinstance(module, nn.Linear) else 1]
        found[used[module]] = found.get(used[module], 0.0) + out.numel() / channels / batch

    used: dict[nn.Module, str] = {}
    names = {id(parameter): name for name, parameter in parameters(model).items()}
    for module in modules(model).values():
        convolves = isinstance(module, nn.modules.conv._ConvNd) and not module.transposed
        raw = max(raw_weights(module), key=torch.numel, default=None)
        name = names.get(id(raw), "")
        if raw is not None and name not in known and (convolves or isinstance(module, nn.Linear)):
            used[module] = name
    if used:
        run_with_hooks(model, example_input, dict.fromkeys(used, count))
    return found


def count_work(model: nn.Module, example_input: Any) -> Work:
    """Count the MACs of one forward pass, after which the model is as before."""
    with in_mode(model, training=False), preserve_state(model):
        return count_macs(model, example_input)


def run_with_hooks(
    model: nn.Module, example_input: Any, hooks: Mapping[nn.Module, Callable[..., None]]
) -> None:
    """Run a model in eval mode with forward hooks `(module, inputs, output)` on some modules."""
    with in_mode(model, training=False), preserve_state(model), ExitStack() as hooked:
        for module, hook in hooks.items():
            hooked.enter_context(module.register_forward_hook(hook))
        bound_forward(model, example_input)()
