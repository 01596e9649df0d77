# SPDX-License-Identifier: MIT
"""Timed forward passes."""

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
            stack.enter_context(eval_mode(model))
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


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
