# SPDX-License-Identifier: MIT
"""Measured milliseconds of layers at several sparsities, dense or as sparse products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regrow.calibration.layer_rows import LayerRows
from regrow.runtime.layer_inputs import layer_inputs
from regrow.runtime.sparse_layers import multiply_rows, to_sparse
from regrow.utils.batches import resize_batch
from regrow.utils.errors import ConfigError
from regrow.utils.modes import in_mode

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


class LayerTimes:
    """Milliseconds of layers: at each sparsity the faster of the dense and the sparse kernel.

    Args:
        sparsities: At which the sparse kernel was measured, rising.
        dense: Milliseconds of the dense kernel, by name of the weight.
        sparse: Milliseconds of the sparse one at each sparsity; between them interpolated.
    """

    def __init__(
        self,
        sparsities: Sequence[float],
        dense: Mapping[str, float],
        sparse: Mapping[str, Sequence[float]],
    ) -> None:
        self.sparsities, self.dense, self.sparse = tuple(sparsities), dense, sparse

    def __call__(self, name: str, sparsity: float) -> float:
        """Return the milliseconds of a layer."""
        sparse = float(np.interp(sparsity, self.sparsities, self.sparse[name]))
        return min(self.dense[name], sparse) if sparsity > 0 else self.dense[name]


def measure_layers(
    model: nn.Module, layers: Sequence[LayerRows], batch: Any, *, repeats: int = 30
) -> LayerTimes:
    """Measure layers on their inputs for the first example of a batch, on the model's device.

    The sparse kernel is the product of the unfolded weight in CSR format, with random positions,
    and of the unfolded inputs. The unfolding of a convolution's inputs counts.

    Args:
        model: The model.
        layers: Its layers.
        batch: Inputs of the model.
        repeats: Number of measured calls, whose median counts.

    Raises:
        ConfigError: For weights of recurrent layers and of attention, which have no kernel alone.
    """
    if other := [layer.name for layer in layers if type(layer) is not LayerRows]:
        raise ConfigError(
            f"{other[0]} is a part of a recurrent layer or of attention, whose milliseconds cannot "
            f"be measured alone: write exclude={other}, or of='params' or 'macs'"
        )
    dense, sparse = dict[str, float](), dict[str, list[float]]()
    generator = torch.Generator().manual_seed(0)
    with in_mode(model, training=False):
        modules = {layer.name: layer.module for layer in layers}
        found = layer_inputs(model, modules, resize_batch(batch, 1))
        for layer in layers:
            x = found[layer.name]
            dense[layer.name] = _milliseconds(partial(layer.module, x), repeats)
            draw = torch.rand(layer.weight.shape, generator=generator).to(x.device)
            sparse[layer.name] = [
                _milliseconds(sparse_layer(layer, draw >= sparsity, x), repeats)
                for sparsity in SPARSITIES
            ]
    return LayerTimes(SPARSITIES, dense, sparse)


def sparse_layer(layer: LayerRows, mask: Tensor, x: Tensor) -> Callable[[], Tensor]:
    """Return a function that computes a masked layer by sparse products.

    Args:
        layer: The layer.
        mask: Bool mask of its weight.
        x: Its input.

    Returns:
        A function that returns the outputs as `(groups, positions, out / groups)`.
    """
    groups = [to_sparse(group) for group in layer.to_matrix(layer.weight.detach() * mask)]
    bias = layer.bias
    shifts = None if bias is None else bias.detach().reshape(len(groups), 1, -1)

    def run() -> Tensor:
        rows = layer.inputs((x,), {})
        pairs = zip(groups, rows, strict=True)
        outputs = torch.stack([multiply_rows(row, group) for group, row in pairs])
        return outputs if shifts is None else outputs + shifts

    return run


def _milliseconds(run: Callable[[], Any], repeats: int, warmup: int = 3) -> float:
    times = []
    for index in range(warmup + repeats):
        start = time.perf_counter()
        out = run()
        if out.device.type != "cpu":
            torch.accelerator.synchronize(out.device)
        if index >= warmup:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)
