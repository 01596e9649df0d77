# SPDX-License-Identifier: MIT
"""Measure the latency of forward passes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regrow.utils.batches import batch_size, bound_forward, device_of
from regrow.utils.errors import check_count
from regrow.utils.modes import eval_mode


@dataclass(frozen=True)
class Latency:
    """Latency of a forward pass: median and quartiles in milliseconds."""

    median_ms: float
    p25_ms: float
    p75_ms: float
    device: str
    threads: int  # of an operation on the CPU
    batch: int
    repeats: int


def latency(model: nn.Module, example_input: Any, *, repeats: int = 50, warmup: int = 5) -> Latency:
    """Measure forward passes of a model in eval mode.

    Args:
        model: The model, on its device.
        example_input: A batch, as for `cost`.
        repeats: Number of measured passes.
        warmup: Number of passes before that.

    Example:
        >>> latency(nn.Linear(4, 4), torch.zeros(8, 4), repeats=3).batch
        8
    """
    return latencies([model], example_input, repeats=repeats, warmup=warmup)[0]


def latencies(
    models: Sequence[nn.Module], example_input: Any, *, repeats: int = 50, warmup: int = 5
) -> list[Latency]:
    """Measure models in turns, pass by pass, so that other load affects all of them.

    Arguments are those of `latency`, for each model.

    Example:
        >>> len(latencies([nn.Linear(4, 4), nn.Linear(4, 2)], torch.zeros(8, 4), repeats=3))
        2
    """
    check_count("repeats", repeats, least=2)
    runs = [bound_forward(model, example_input) for model in models]
    devices = [device_of(model) for model in models]
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(eval_mode(model))
        stack.enter_context(torch.inference_mode())
        for index in range(warmup + repeats):
            turn = list(zip(runs, devices, times, strict=True))
            # alternate the order, so that it favours no model
            for run, device, own in turn if index % 2 else reversed(turn):
                _wait(device)
                start = time.perf_counter()
                run()
                _wait(device)
                if index >= warmup:
                    own.append(1e3 * (time.perf_counter() - start))
    threads, batch = torch.get_num_threads(), batch_size(example_input)
    result = []
    for device, own in zip(devices, times, strict=True):
        p25, median, p75 = statistics.quantiles(own, n=4, method="inclusive")
        result.append(Latency(median, p25, p75, str(device), threads, batch, repeats))
    return result


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
