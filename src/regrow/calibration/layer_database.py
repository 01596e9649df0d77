# SPDX-License-Identifier: MIT
"""What each layer loses at a ladder of sparsities, pruned and refitted while others are dense."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from regrow.calibration.calibrate import score_layer
from regrow.calibration.layer_rows import LayerRows
from regrow.calibration.moments import Data, Moments, input_moments
from regrow.calibration.refit import refit_matrix
from regrow.masks.topk import global_topk_masks

MEMORY = 2**30  # bytes of the second moments that are held at once


@dataclass(frozen=True)
class LayerRecord:
    """The record of one layer.

    Attributes:
        layer: The layer.
        scores: Scores of its weight, in the order of which it is pruned.
        sparsities: The ladder, rising.
        losses: The loss at each.
    """

    layer: LayerRows
    scores: Tensor
    sparsities: tuple[float, ...]
    losses: tuple[float, ...]

    def mask(self, sparsity: float) -> Tensor:
        """Return the mask that prunes the lowest scores."""
        count = min(round(sparsity * self.scores.numel()), self.scores.numel() - 1)
        return global_topk_masks([self.scores], count)[0]

    def interpolated(self, parts: int) -> LayerRecord:
        """Divide each step of the ladder into parts of equal ratios of densities.

        Losses between two records are interpolated geometrically, and made monotone first.
        """
        x = -np.log1p(-np.asarray(self.sparsities))
        y = np.log(np.maximum.accumulate(np.asarray(self.losses)) + 1e-12)
        steps = np.arange(parts * (len(x) - 1) + 1) / parts
        fine = np.interp(steps, np.arange(len(x)), x)
        losses = np.maximum(np.exp(np.interp(fine, x, y)) - 1e-12, 0.0)
        ladder = tuple(float(s) for s in -np.expm1(-fine))
        return replace(self, sparsities=ladder, losses=tuple(map(float, losses)))


@torch.no_grad()
def record_layers(
    model: nn.Module,
    layers: Sequence[LayerRows],
    data: Data,
    sparsities: Sequence[float],
    measure: Callable[[], float],
    *,
    criterion: str = "obs",
    damping: float = 1e-3,
) -> Iterator[LayerRecord]:
    """Prune and refit each layer at each sparsity, measure the loss, and restore it.

    A layer is refitted to its dense outputs on its dense inputs, so that one pass over the data
    serves as many layers as have their second moments within `MEMORY` (always one at least).
    Weights of the ladder are not stored: memory is that of the scores, and of these moments. Yields
    the record of each layer, with 0 at the start of its ladder; the loss of the dense model is
    taken as 0.

    Source: Frantar and Alistarh 2022 (OBC), arXiv 2208.11580, section 6: databases of layers.
    """
    for part in _parts(layers):
        found = input_moments(model, part, data)
        for layer in part:
            moments = found.pop(layer.name)
            if criterion == "magnitude":
                scores = layer.weight.detach().abs()
            else:
                scores = score_layer(layer, moments.xx, criterion, 0.0, damping)
            _add_dense_outputs(layer, moments)
            record = LayerRecord(layer, scores.float(), (0.0, *sparsities), ())
            losses = [_loss_at(record, s, moments, measure, damping) for s in sparsities]
            yield replace(record, losses=(0.0, *losses))


def _parts(layers: Sequence[LayerRows]) -> Iterator[list[LayerRows]]:
    """Divide layers into parts whose second moments fit into `MEMORY`."""
    part, size = list[LayerRows](), 0
    for layer in layers:
        groups, _, features = layer.matrix.shape
        own = 8 * groups * features**2
        if part and size + own > MEMORY:
            yield part
            part, size = [], 0
        part.append(layer)
        size += own
    yield part


def _add_dense_outputs(layer: LayerRows, moments: Moments) -> None:
    """Add the moments of the outputs y = W x + b, which those of the inputs x determine."""
    matrix, x = layer.matrix.double(), moments.x
    moments.xy = moments.xx @ matrix.mT
    moments.y = (matrix @ x[:, :, None])[:, :, 0]
    if layer.bias is not None:
        bias = layer.bias.detach().double().reshape(len(matrix), -1)
        moments.xy = moments.xy + x[:, :, None] * bias[:, None, :]
        moments.y = moments.y + moments.rows * bias


def _loss_at(
    record: LayerRecord,
    sparsity: float,
    moments: Moments,
    measure: Callable[[], float],
    damping: float,
) -> float:
    """Measure the loss with one layer pruned and refitted, and restore it."""
    layer = record.layer
    weight, bias = layer.weight, layer.bias
    before = [(p, p.detach().clone()) for p in (weight, bias) if p is not None]
    mask = record.mask(sparsity)
    keep, biased = layer.to_matrix(mask), bias is not None
    matrix, shift = refit_matrix(layer.matrix, keep, moments, biased, damping)
    try:
        weight.copy_(layer.to_weight(matrix).masked_fill(~mask, 0.0))
        if bias is not None and shift is not None:
            bias.copy_(shift.flatten())
        return measure()
    finally:
        for parameter, values in before:
            parameter.copy_(values)
