# SPDX-License-Identifier: MIT
"""Run a sparse model by the fastest kernels of this machine."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.profiling.latency import Speedup, compare_latency, describe_load, machine_load
from regrow.runtime.candidates import find_layers
from regrow.runtime.choice import DENSE, LayerChoice, choose_form
from regrow.runtime.layer_inputs import layer_inputs
from regrow.runtime.sparse_layers import check_dense
from regrow.utils.batches import bound_forward, relative_difference
from regrow.utils.display import align_columns
from regrow.utils.errors import ConfigError, StateError, check_count, check_positive, one_line
from regrow.utils.modes import in_mode

_WHOLE = 100  # times the tolerance of a layer: that of the outputs of the whole model
Pair = tuple[nn.Module, nn.Module]  # the dense layer, and what replaces it


@dataclass(frozen=True)
class Acceleration:
    """What `accelerate` made of a model; `str()` is a table.

    Attributes:
        layers: What each layer became, and why.
        speedup: Of the whole model with the faster layers; None if no layer was faster.
        load: Processes that wanted to run while it was measured; None where that is unknown.
    """

    layers: tuple[LayerChoice, ...]
    speedup: Speedup | None
    load: float | None
    _model: nn.Module = field(repr=False)
    _replaced: list[Pair] = field(repr=False)

    @property
    def gains(self) -> bool:
        """Whether the model is faster beyond noise."""
        return self.speedup is not None and self.speedup.is_faster

    def undo(self) -> None:
        """Put the dense layers back. Their parameters were never changed."""
        for dense, other in self._replaced:
            _replace(self._model, other, dense)
        self._replaced.clear()

    def __str__(self) -> str:
        cells = [(c.name, f"{c.sparsity:.1%}", c.form, c.reason) for c in self.layers]
        rows = [("layer", "zeros", "runs as", "measured, against dense"), *cells]
        return f"{align_columns(rows)}\n{self._verdict()}{describe_load(self.load)}"

    def _verdict(self) -> str:
        if self.gains:
            return f"model: {self.speedup}"
        measured = "no layer is faster" if self.speedup is None else f"model: {self.speedup}"
        return (
            f"nothing is gained ({measured}), and every layer stays dense: sparse kernels are "
            "faster from about 85 % zeros on, in layers and batches that are large enough"
        )


def accelerate(
    model: nn.Module, example_input: Any, *, tolerance: float = 1e-5, repeats: int = 30
) -> Acceleration:
    """Replace layers, in place, by forms that compute the same and are faster on this machine.

    Linear layers and convolutions with one kernel position are tried as products in CSR format
    and, where whole blocks are zero, in BSR format, and on CUDA devices in torch's 2:4 format where
    two of each four weights of a row are zero; two-dimensional convolutions with weights in
    channels-last order. A form is taken if it is faster than the dense layer beyond noise on the
    layer's input, and its outputs differ by at most `tolerance` times the largest output (those of
    the whole model by 100 times that). If the whole model is not faster beyond noise, every layer
    stays dense.

    The accelerated model is for inference. Its state dict is that of the dense model; weights are
    read once, so call `undo()` before they change.

    Args:
        model: The model in eval mode, on its device.
        example_input: A batch of the size that is to be fast: a tensor, a tuple of arguments or a
            mapping.
        tolerance: The relative difference that is allowed; half precision needs about 1e-2.
        repeats: Number of measured passes of each form.

    Returns:
        What each layer became and why, with `undo()`.

    Raises:
        StateError: If the model is in train mode, or accelerated already.
        ConfigError: For a tolerance or repeats out of range, a model without a layer inside, or one
            that fails with sparse layers (under autocast, or for gradients) or computes something
            else with them; it is dense again.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 8)).eval()
        >>> result = accelerate(model, torch.zeros(4, 8))  # no zeros
        >>> result.gains, result.layers[0].form
        (False, 'dense')
        >>> result.undo()
    """
    check_positive("tolerance", tolerance, "1e-5")
    check_count("repeats", repeats, least=2)
    layers = _check_layers(model)
    inputs = layer_inputs(model, layers, example_input)
    choices, replaced = list[LayerChoice](), list[Pair]()
    for name, layer in layers.items():
        x = inputs.get(name)
        choice, other = choose_form(name, layer, x, tolerance=tolerance, repeats=repeats)
        choices.append(choice)
        if other is not layer:
            replaced.append((layer, other))
    result = Acceleration(tuple(choices), None, machine_load(), model, replaced)
    if replaced:
        speedup = _replace_and_compare(result, model, example_input, replaced, repeats, tolerance)
        result = replace(result, speedup=speedup, load=machine_load())
    if result.gains:
        return result
    result.undo()
    stayed = tuple(replace(choice, form=DENSE, speedup=None) for choice in choices)
    return replace(result, layers=stayed)


def _replace_and_compare(
    result: Acceleration,
    model: nn.Module,
    example: Any,
    replaced: list[Pair],
    repeats: int,
    tolerance: float,
) -> Speedup:
    """Replace the layers, and compare the model with the dense one; restore it if that fails."""
    dense, limit = _share_tensors(model), _WHOLE * tolerance
    try:
        for layer, other in replaced:
            _replace(model, layer, other)
        difference = _difference(model, dense, example)
        if not difference <= limit and _difference(dense, dense, example) <= limit:
            raise StateError(
                f"its outputs differ by {difference:.1g} of the largest, and those of each layer "
                "do not; its forward may depend on the type of its layers"
            )
        return compare_latency(dense, model, example, repeats=repeats).speedup
    except BaseException as error:
        result.undo()
        if not isinstance(error, Exception):  # interrupted
            raise
        raise ConfigError(
            f"the model does not run with sparse layers, and is dense again: {one_line(error)}"
        ) from error


def _difference(model: nn.Module, other: nn.Module, example: Any) -> float:
    """Return the largest relative difference of two models' outputs, with equal random numbers."""
    outputs = []
    for each in (model, other):
        with in_mode(each, training=False):
            leaves = tree_leaves(bound_forward(each, example)())
        outputs.append([leaf for leaf in leaves if isinstance(leaf, Tensor)])
    shapes = [[leaf.shape for leaf in leaves] for leaves in outputs]
    if shapes[0] != shapes[1]:
        return math.inf
    return float(torch.tensor([0.0, *map(relative_difference, *outputs)]).max())  # NaN if any is


def _check_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a model that can be accelerated."""
    if model.training:
        raise StateError("accelerate needs a model in eval mode, for inference: call model.eval()")
    check_dense(model)
    if layers := find_layers(model):
        return layers
    raise ConfigError(
        "the model has no Linear layer or convolution inside that can be replaced: write "
        "nn.Sequential(layer) for a single layer"
    )


def _share_tensors(model: nn.Module) -> nn.Module:
    """Copy a model without its parameters and buffers, which the copy shares."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module wherever the model has it."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
