# SPDX-License-Identifier: MIT
"""Refit the kept weights of all layers together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.calibration.layer_rows import LayerRows
from regrow.calibration.moments import Data, gradients_in_eval
from regrow.utils.batches import bound_forward
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.modes import in_mode


class NoGradientError(ConfigError):
    """The outputs have no gradient with respect to weights that are to be refitted."""


@torch.no_grad()
def refit_jointly(
    model: nn.Module,
    dense: nn.Module,
    layers: Sequence[LayerRows],
    masks: Mapping[str, Tensor],
    data: Data,
    depth: int = 4,
    steps: int = 50,
) -> float:
    """Refit the kept weights and biases of all layers together, by nonlinear least squares.

    Minimises sum_b |Y_b - D_b|^2 / |D_b|^2 over them, with the outputs Y_b of block b in the pruned
    network and D_b in the dense one, so that a layer makes up for what those beside and before it
    lose. Blocks are the largest modules with at most `depth` of the layers, such as the residual
    blocks of a ResNet. Norms are as in evaluation. A start from `refit_layers` is best. Memory is
    that of a training step on a batch, and of 40 gradients.

    Args:
        model: The pruned model.
        dense: A copy of it before it was pruned.
        layers: Layers of the model.
        masks: Bool masks by name of the weight; layers without one are left as they are.
        data: Calibration data.
        depth: The largest number of layers of a block; 1: all outputs of layers are reproduced.
        steps: Number of L-BFGS iterations.

    Returns:
        The sum after the refit.

    Raises:
        NoGradientError: If outputs have no gradient; the model is unchanged.
        ConfigError: For weights in float16.
        StateError: If a block is not called for each batch, or values become infinite; the model is
            then unchanged.

    Source: Lucas and Mazumder 2025 (SNOWS), ICLR: a reconstruction over several operations, there
        by Newton steps.
    """
    pruned = [layer for layer in layers if layer.name in masks]
    kept: dict[Tensor, Tensor | None] = {}
    for layer in pruned:
        kept[layer.weight] = masks[layer.name].to(layer.weight.device, torch.bool)
        if isinstance(layer.bias, nn.Parameter):  # no part of a larger one
            kept[layer.bias] = None
    _check_range(pruned)
    with gradients_in_eval(model), in_mode(dense, training=False):
        blocks = _find_blocks(model, pruned, data.batches[0], depth)
        copies = dict(zip(model.modules(), dense.modules(), strict=True))
        pair = _Pair(model, blocks, dense, [copies[block] for block in blocks], data)
        return _minimise(pair, kept, steps)


def _check_range(layers: Sequence[LayerRows]) -> None:
    if half := [layer.name for layer in layers if layer.weight.dtype == torch.float16]:
        raise ConfigError(
            f"a joint refit needs the range of float32, and {half[0]} is float16: call "
            "model.float() before, and model.half() after it"
        )


@dataclass
class _Pair:
    """A pruned and a dense network, and blocks of both whose outputs are compared."""

    model: nn.Module
    blocks: list[nn.Module]
    dense: nn.Module
    twins: list[nn.Module]
    data: Data

    @cached_property
    def sizes(self) -> Tensor:
        """|D_b|^2 of each block."""
        parts = [_squares(_outputs(self.dense, self.twins, b)) for b in self.data.batches]
        return self.total(torch.stack(parts).sum(0)).clamp_min(1e-30)

    def differentiate(self, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the sum of relative errors, and its gradients."""
        error = torch.zeros_like(self.sizes[0])
        gradients = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        for batch in self.data.batches:
            goals = _outputs(self.dense, self.twins, batch)
            with torch.enable_grad():
                pairs = zip(_outputs(self.model, self.blocks, batch), goals, strict=True)
                loss = (_squares([y - goal for y, goal in pairs]) / self.sizes).sum()
            parts: Sequence[Tensor | None] = [None] * len(gradients)
            if loss.requires_grad:
                parts = torch.autograd.grad(loss, parameters, allow_unused=True)
            error += loss.detach()
            for sums, part in zip(gradients, parts, strict=True):
                if part is None:
                    raise NoGradientError(
                        "the model's outputs have no gradient with respect to some of its weights, "
                        "by which they are refitted jointly: refit layer by layer (refit=True)"
                    )
                sums += part
        return self.total(error), [self.total(sums) for sums in gradients]

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over ranks."""
        return values if self.data.total is None else self.data.total(values)


def _minimise(pair: _Pair, kept: Mapping[Tensor, Tensor | None], steps: int) -> float:
    """Move kept values to a minimum, and return the least sum of relative errors."""
    errors: list[float] = []

    @torch.no_grad()
    def closure() -> Tensor:
        error, gradients = pair.differentiate([*kept])
        for (parameter, mask), gradient in zip(kept.items(), gradients, strict=True):
            parameter.grad = gradient.to(parameter).contiguous()  # L-BFGS takes flat views
            if mask is not None:
                parameter.grad.masked_fill_(~mask, 0.0)
        errors.append(float(error))
        return error

    with ExitStack() as undo:
        for parameter in kept:
            undo.callback(setattr, parameter, "grad", parameter.grad)
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(True)
        solver = torch.optim.LBFGS(
            [*kept],
            max_iter=steps,
            tolerance_grad=0.0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )
        before = [parameter.detach().clone() for parameter in kept]
        solver.step(closure)  # type: ignore[no-untyped-call]
        if not all(bool(parameter.isfinite().all()) for parameter in kept):
            for parameter, values in zip(kept, before, strict=True):
                parameter.data.copy_(values)
            raise StateError(
                "the joint refit leads to weights that are not finite, as for outputs that are "
                "nearly zero: refit layer by layer (refit=True)"
            )
    return min(errors)


def _find_blocks(
    model: nn.Module, layers: Sequence[LayerRows], batch: Any, depth: int
) -> list[nn.Module]:
    """Return the largest modules that are called and hold at most `depth` of the layers."""
    inside = {module: {*module.modules()} for module in model.modules()}
    counts = {m: sum(layer.module in members for layer in layers) for m, members in inside.items()}
    called, found = set[nn.Module](), dict[nn.Module, None]()

    def hook(module: nn.Module, _: Any, output: Any) -> None:
        if _leaves(output):
            called.add(module)

    with _hooked(inside, hook):
        bound_forward(model, batch)()

    def visit(module: nn.Module) -> None:
        children = [child for child in module.children() if counts[child]]
        if module in called and (counts[module] <= depth or not children):
            found[module] = None
        else:
            for child in children:
                visit(child)

    visit(model)
    return [*found]


def _outputs(model: nn.Module, modules: Sequence[nn.Module], batch: Any) -> list[Tensor]:
    """Run a model, and return the outputs of all calls of each module, as one vector."""
    calls: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}

    def hook(module: nn.Module, _: Any, output: Any) -> None:
        calls[module] += [x.flatten().clone() for x in _leaves(output)]  # activations may overwrite

    with _hooked(modules, hook):
        bound_forward(model, batch)()
    if not all(calls.values()):
        raise StateError(
            "a block is called for some batches and not for others: refit layer by layer "
            "(refit=True)"
        )
    return [torch.cat(found) for found in calls.values()]


def _leaves(output: Any) -> list[Tensor]:
    leaves = tree_leaves(output)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


@contextmanager
def _hooked(modules: Iterable[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _squares(outputs: Sequence[Tensor]) -> Tensor:
    return torch.stack([output.double().square().sum() for output in outputs])
