# SPDX-License-Identifier: MIT
"""Refit the kept weights of several layers together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from regrow.calibration.layer_rows import LayerRows
from regrow.calibration.moments import Data
from regrow.utils.batches import bound_forward
from regrow.utils.modes import in_mode


def refit_jointly(
    model: nn.Module,
    dense: nn.Module,
    layers: Sequence[LayerRows],
    masks: Mapping[str, Tensor],
    data: Data,
    depth: int = 3,
    steps: int = 30,
) -> dict[str, float]:
    """Refit the kept weights and biases of each few layers together, by nonlinear least squares.

    For the layers i to i + depth - 1, minimises the squared difference between the output of the
    last one and its output in the dense network, over the inputs that the network gives them as
    refitted so far; likewise for outputs on which the last one does not depend, as beside a
    shortcut. Norms are as in evaluation. A start from `refit_layers` is best.

    Args:
        model: The pruned model.
        dense: A copy of it before it was pruned.
        layers: Layers of the model, in the order in which they run.
        masks: Bool masks by name of the weight; layers without one are left as they are.
        data: Calibration data.
        depth: The number of layers that are refitted together.
        steps: Number of L-BFGS iterations for each.

    Returns:
        The squared difference of the last output of each few layers after the refit, relative to
        the squared output, by name of the last layer's weight.

    Source: Lucas and Mazumder 2025 (SNOWS), ICLR: a reconstruction over K operations, there by
        Newton steps.
    """
    errors = {}
    pruned = [layer for layer in layers if layer.name in masks]
    modules = dict(zip(model.modules(), dense.modules(), strict=True))
    with in_mode(model, training=False), in_mode(dense, training=False):
        for start in range(0, len(pruned), depth):
            block = pruned[start : start + depth]
            ends = _find_ends(model, block, data.batches[0])
            twins = [modules[module] for module in ends]
            goals = [_outputs(dense, twins, batch) for batch in data.batches]
            errors[block[-1].name] = _fit_block(model, ends, block, masks, data, goals, steps)
    return errors


def _fit_block(
    model: nn.Module,
    ends: Sequence[nn.Module],
    block: Sequence[LayerRows],
    masks: Mapping[str, Tensor],
    data: Data,
    goals: Sequence[Tensor],
    steps: int,
) -> float:
    kept: dict[Tensor, Tensor | None] = {}
    for layer in block:
        kept[layer.weight] = masks[layer.name].to(layer.weight.device, torch.bool)
        if isinstance(layer.bias, nn.Parameter):  # no part of a larger one
            kept[layer.bias] = None
    size = _total(data, sum((goal.double().square().sum() for goal in goals), torch.tensor(0.0)))
    errors: list[float] = []

    def closure() -> Tensor:
        error = torch.zeros((), dtype=torch.float64)
        gradients = [torch.zeros_like(p, dtype=torch.float64) for p in kept]
        for batch, goal in zip(data.batches, goals, strict=True):
            with torch.enable_grad():
                loss = (_outputs(model, ends, batch) - goal).double().square().sum()
            parts = torch.autograd.grad(loss, [*kept])
            error += loss.detach().cpu()
            for sums, part in zip(gradients, parts, strict=True):
                sums += part
        scale = float(size.clamp_min(1e-30))
        for (parameter, mask), sums in zip(kept.items(), gradients, strict=True):
            gradient = (_total(data, sums) / scale).to(parameter)
            parameter.grad = gradient if mask is None else gradient.masked_fill(~mask, 0.0)
        errors.append(float(_total(data, error)) / scale)
        return torch.tensor(errors[-1], dtype=torch.float64)

    with ExitStack() as undo:
        for parameter in kept:
            undo.callback(setattr, parameter, "grad", parameter.grad)
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(True)
        solver = torch.optim.LBFGS(
            [*kept], max_iter=steps, tolerance_grad=0.0, line_search_fn="strong_wolfe"
        )
        solver.step(closure)  # type: ignore[no-untyped-call]
    return min(errors)


def _find_ends(model: nn.Module, block: Sequence[LayerRows], batch: Any) -> list[nn.Module]:
    """Return the last layer, and those that it does not depend on, as behind a shortcut."""
    ends: list[nn.Module] = []
    for layer in reversed(block):
        if layer.module in ends:
            continue
        with ExitStack() as undo, torch.enable_grad():
            undo.callback(layer.weight.requires_grad_, layer.weight.requires_grad)
            layer.weight.requires_grad_(True)
            reads = ends and _outputs(model, ends, batch).sum()
            if not isinstance(reads, Tensor) or not _depends(reads, layer.weight):
                ends.append(layer.module)
    return ends


def _depends(output: Tensor, weight: Tensor) -> bool:
    if not output.requires_grad:
        return False
    return torch.autograd.grad(output, weight, allow_unused=True)[0] is not None


def _outputs(model: nn.Module, ends: Sequence[nn.Module], batch: Any) -> Tensor:
    """Run a model, and return the outputs of all calls of some modules, as one vector."""
    calls: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        calls.append((output if isinstance(output, Tensor) else output[0]).flatten())

    handles = [module.register_forward_hook(hook) for module in ends]
    try:
        bound_forward(model, batch)()
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(calls)


def _total(data: Data, values: Tensor) -> Tensor:
    return values if data.total is None else data.total(values)
