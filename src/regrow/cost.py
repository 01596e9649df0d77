# SPDX-License-Identifier: MIT
"""What a model costs: parameters, multiply-accumulates (MACs), bytes, latency.

MACs are counted in the matrix products and convolutions of one forward pass, attention included,
and are those of one example. A pruned weight saves as many MACs as it has output positions; that
is what a sparse kernel could save, a dense one computes with the zeros.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regrow.errors import check_count
from regrow.macs import (
    batch_size,
    bound_forward,
    count_macs,
    device_of,
    evaluating,
    named_parameters,
)
from regrow.macs import positions as positions
from regrow.masks import Masks
from regrow.targets import clean


@dataclass(frozen=True)
class Cost:
    """The size of a model and the work of one example.

    Attributes:
        params: Parameters that are not pruned, biases and norms included.
        macs: Multiply-accumulates of one example, without those of pruned weights.
        bytes: Parameters and buffers; of a masked parameter its kept values and one bit a place.
    """

    params: int
    macs: int
    bytes: int


class Layer(NamedTuple):
    """One row of `layer_table`.

    Attributes:
        name: The weight's name.
        kind: The type of its module.
        shape: Its shape.
        params: Its kept weights.
        sparsity: Its pruned fraction; 0 where it has no mask.
        macs: Its multiply-accumulates for one example, pruned ones left out.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    sparsity: float
    macs: int


@dataclass(frozen=True)
class Latency:
    """How long a forward pass takes, in milliseconds.

    Attributes:
        median_ms: Median over the repeats.
        p25_ms: A quarter of them were faster.
        p75_ms: A quarter of them were slower.
        device: Where it ran.
        threads: Threads of a CPU operation.
        batch: Examples a pass.
        repeats: Passes measured.
    """

    median_ms: float
    p25_ms: float
    p75_ms: float
    device: str
    threads: int
    batch: int
    repeats: int


def cost(model: nn.Module, example_input: Any, masks: Mapping[str, Tensor] | None = None) -> Cost:
    """Parameters, MACs and bytes, dense or under masks.

    Args:
        model: The model; it runs once, in eval mode.
        example_input: A batch; a tuple holds positional arguments, a dict keyword arguments.
        masks: Bool masks by parameter name; None: dense.

    Raises:
        StateError: If a mask has no parameter, or another shape.

    Example:
        >>> layer, keep = nn.Linear(10, 4), torch.zeros(4, 10, dtype=torch.bool)
        >>> keep[:, 0] = True
        >>> cost(layer, torch.zeros(2, 10)), cost(layer, torch.zeros(2, 10), {"weight": keep})
        (Cost(params=44, macs=40, bytes=176), Cost(params=8, macs=4, bytes=37))
    """
    pruned, parameters = _pruned(model, masks), named_parameters(model)
    work = count_macs(model, example_input)
    held = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.itemsize for tensor in held)
    for name, count in pruned.items():
        size += -(-parameters[name].numel() // 8) - count * parameters[name].itemsize
    saved = sum(work.positions.get(name, 0.0) * count for name, count in pruned.items())
    return Cost(
        params=sum(parameter.numel() for parameter in model.parameters()) - sum(pruned.values()),
        macs=round(work.macs - saved),
        bytes=size,
    )


def layer_table(
    model: nn.Module, example_input: Any, masks: Mapping[str, Tensor] | None = None
) -> list[Layer]:
    """Every weight that takes part in a product or has a mask, in model order.

    Args:
        model: The model; it runs once, in eval mode.
        example_input: As for `cost`.
        masks: Bool masks by parameter name; None: dense.

    Raises:
        StateError: If a mask has no parameter, or another shape.

    Example:
        >>> layer_table(nn.Linear(10, 4), torch.zeros(2, 10))
        [Layer(name='weight', kind='Linear', shape=(4, 10), params=40, sparsity=0.0, macs=40)]
    """
    pruned, used = _pruned(model, masks), positions(model, example_input)
    modules = model.named_modules(remove_duplicate=False)
    kinds = {clean(f"{name}.")[:-1]: type(module).__name__ for name, module in modules}
    rows = []
    for raw, parameter in model.named_parameters():
        name = clean(raw)
        kept = parameter.numel() - pruned.get(name, 0)
        if name in used or name in pruned:
            kind, shape = kinds[name.rpartition(".")[0]], tuple(parameter.shape)
            sparsity = 1 - kept / max(1, parameter.numel())
            macs = round(used.get(name, 0.0) * kept)
            rows.append(Layer(name, kind, shape, kept, sparsity, macs))
    return rows


def latency(model: nn.Module, example_input: Any, *, repeats: int = 50, warmup: int = 5) -> Latency:
    """Times forward passes in eval mode, one by one.

    Args:
        model: The model, where it is to run.
        example_input: As for `cost`; its batch is the batch of the figure.
        repeats: Passes measured.
        warmup: Passes before that.

    Example:
        >>> latency(nn.Linear(4, 4), torch.zeros(8, 4), repeats=3).batch
        8
    """
    return latencies([model], example_input, repeats=repeats, warmup=warmup)[0]


def latencies(
    models: Sequence[nn.Module], example_input: Any, *, repeats: int = 50, warmup: int = 5
) -> list[Latency]:
    """Times models of one input pass by pass in turns, so that a busy moment hits them all.

    Args:
        models: The models, where they are to run.
        example_input: As for `cost`; its batch is the batch of the figures.
        repeats: Passes of each model measured.
        warmup: Passes of each before that.

    Example:
        >>> len(latencies([nn.Linear(4, 4), nn.Linear(4, 2)], torch.zeros(8, 4), repeats=3))
        2
    """
    check_count("repeats", repeats, least=2)
    runs = [bound_forward(model, example_input) for model in models]
    devices = [device_of(model) for model in models]
    found: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode())
        for index in range(warmup + repeats):
            turn = list(zip(runs, devices, found, strict=True))
            # there and back: what comes first, or after whom, must not be who is slow
            for run, device, times in turn if index % 2 else reversed(turn):
                _wait(device)
                start = time.perf_counter()
                run()
                _wait(device)
                if index >= warmup:
                    times.append(1e3 * (time.perf_counter() - start))
    threads, batch = torch.get_num_threads(), batch_size(example_input)
    result = []
    for device, times in zip(devices, found, strict=True):
        p25, median, p75 = statistics.quantiles(times, n=4, method="inclusive")
        result.append(Latency(median, p25, p75, str(device), threads, batch, repeats))
    return result


def _pruned(model: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, int]:
    """How many weights each mask prunes, by the first name of a shared parameter."""
    if masks is None:
        return {}
    named = named_parameters(model)
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    masks.check({name: named[name] for name in masks if name in named})
    first = {id(parameter): clean(name) for name, parameter in model.named_parameters()}
    return {
        first[id(named[name])]: mask.numel() - int(mask.count_nonzero())
        for name, mask in masks.items()
    }


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
