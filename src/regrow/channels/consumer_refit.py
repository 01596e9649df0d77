# SPDX-License-Identifier: MIT
"""Refit the layers that read removed channels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from regrow.calibration.calibrate import inputs_of, order_layers, refit_layers
from regrow.calibration.layer_rows import LayerRows
from regrow.calibration.moments import Data
from regrow.calibration.sequence_rows import find_rows
from regrow.channels.cut.channel_cut import ChannelCut

SAMPLES = 1024


def refit_consumers(
    model: nn.Module,
    dense: nn.Module,
    plan: ChannelCut,
    data: Iterable[Any],
    damping: float = 1e-3,
) -> dict[str, int]:
    """Refit the weights and biases of layers whose inputs were cut, in the order in which they run.

    Each reproduces, by least squares, the outputs that it had in the dense network from the inputs
    that are left; see `regrow.calibrate`. Layers whose number of groups changed, recurrent ones
    and attention stay as they are.

    Args:
        model: The model, after the cut.
        dense: A copy of it before the cut.
        plan: The cut; its undo then restores the biases too.
        data: Batches of inputs, of which about 1,024 examples are used.
        damping: Ridge term, as a fraction of the mean squared input.

    Returns:
        The number of input rows that each layer was fitted on, by name of its weight.

    Raises:
        ConfigError, StateError: For no batch, and inputs that are not finite; the cut is undone.
    """
    try:
        used = Data(inputs_of(data, SAMPLES))
        pairs = dict(zip(model.modules(), dense.modules(), strict=True))
        layers = {
            layer.name: layer
            for layer in find_rows(model)
            if type(layer) is LayerRows  # recurrent layers and attention stay as they are
            and _input_dim(layer) in plan.kept.get(layer.name, {})
            and layer.groups == getattr(pairs[layer.module], "groups", layer.groups)
        }
        ordered = order_layers(model, [*layers.values()], used)
        masks = {layer.name: torch.ones_like(layer.weight, dtype=torch.bool) for layer in ordered}
        kept = {layer.name: _kept_outputs(layer, plan) for layer in ordered}
        for layer in ordered:
            if plan.undo is not None and layer.bias is not None:
                plan.undo.keep(layer.bias)
        present = {name: outputs for name, outputs in kept.items() if outputs is not None}
        return refit_layers(model, dense, ordered, masks, used, damping, present)
    except BaseException:
        if plan.undo is not None:
            plan.undo()
        raise


def _input_dim(layer: LayerRows) -> int:
    return 0 if getattr(layer.module, "transposed", False) else 1


def _kept_outputs(layer: LayerRows, plan: ChannelCut) -> Tensor | None:
    """Return which outputs of all groups are left; None: all."""
    dim = 1 - _input_dim(layer)
    kept = plan.kept[layer.name].get(dim)
    return kept.repeat(layer.groups) if kept is not None and dim else kept
