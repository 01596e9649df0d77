# SPDX-License-Identifier: MIT
"""Measure and compare the latency of forward passes."""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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
    """Measure forward passes of a model in eval mode, on a batch as for `cost`."""
    return latencies([model], example_input, repeats=repeats, warmup=warmup)[0]


def latencies(
    models: Sequence[nn.Module], example_input: Any, *, repeats: int = 50, warmup: int = 5
) -> list[Latency]:
    """Measure models in turns, pass by pass, so that other load affects all of them."""
    times = _time_in_turns(models, example_input, repeats, warmup)
    return [_summarize(model, example_input, own) for model, own in zip(models, times, strict=True)]


@dataclass(frozen=True)
class Speedup:
    """How much faster one model is than another, and what noise alone would show.

    Attributes:
        ratio: Median time of the reference / median time of the model.
        low: Lower end of the 95 % bootstrap interval of the ratio.
        high: Its upper end.
        noise: A ratio below this, and above 1 / noise, was also seen between the reference and a
            copy of it; at least 1.
    """

    ratio: float
    low: float
    high: float
    noise: float

    @property
    def is_faster(self) -> bool:
        """Whether the whole interval is above the noise."""
        return self.low > self.noise

    @property
    def is_slower(self) -> bool:
        """Whether the whole interval is below the noise."""
        return self.high < 1 / self.noise

    def __str__(self) -> str:
        interval = f"({self.low:.2f} to {self.high:.2f})"
        if self.is_faster or self.is_slower:
            return f"{self.ratio:.2f}x as fast {interval}"
        return f"within noise: {self.ratio:.2f}x {interval}"


class Comparison(NamedTuple):
    """Latencies of a reference and another model, measured in turns, and their ratio."""

    reference: Latency
    model: Latency
    speedup: Speedup


def compare_latency(
    reference: nn.Module,
    model: nn.Module,
    example_input: Any,
    *,
    repeats: int = 50,
    warmup: int = 5,
    resamples: int = 1000,
) -> Comparison:
    """Compare two models, pass by pass in turns, beside a copy of the reference.

    The interval of a ratio of medians is a bootstrap over passes: those of one turn are drawn
    together, so that load on the machine affects both. The copy shows what equal networks differ
    by here.

    Args:
        reference: The model to compare with, such as the dense network.
        model: The other model, on the same device.
        example_input: A batch, as for `cost`.
        repeats: Number of measured passes of each.
        warmup: Number of passes before that.
        resamples: Number of bootstrap samples.

    Example:
        >>> wide, narrow = nn.Linear(2048, 2048), nn.Linear(2048, 2)
        >>> compare_latency(wide, narrow, torch.zeros(64, 2048)).speedup.is_faster
        True
    """
    check_count("resamples", resamples)
    models = [reference, model, copy.deepcopy(reference)]
    times = _time_in_turns(models, example_input, repeats, warmup)
    first, other, again = np.asarray(times)
    drawn = np.random.default_rng(0).integers(repeats, size=(resamples, repeats))
    low, high = _ratio_interval(first, other, drawn)
    ends = _ratio_interval(first, again, drawn)
    noise = max(1.0, 1 / ends[0], ends[1])
    ratio = float(np.median(first) / np.median(other))
    return Comparison(
        _summarize(reference, example_input, times[0]),
        _summarize(model, example_input, times[1]),
        Speedup(ratio, low, high, noise),
    )


def machine_load() -> float | None:
    """Return the processes that wanted to run over the last minute; None where it is unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def describe_load(load: float | None) -> str:
    """Say that passes were timed beside other processes; empty if there was a core for each.

    A pass that is longer than a turn of the scheduler is interrupted in most of its repeats, which
    multiplies the median, of a copy too: interleaved passes and the interval do not show it.
    """
    cores = os.cpu_count() or 1
    if load is None or load <= cores + 0.5:
        return ""
    return f"; measured beside other processes (load {load:.1f} on {cores} cores)"


def _ratio_interval(
    first: NDArray[np.float64], second: NDArray[np.float64], drawn: NDArray[np.int64]
) -> tuple[float, float]:
    """Return the 95 % interval of median(first) / median(second) over drawn passes."""
    ratios = np.median(first[drawn], axis=1) / np.median(second[drawn], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def _time_in_turns(
    models: Sequence[nn.Module], example_input: Any, repeats: int, warmup: int
) -> list[list[float]]:
    """Return the milliseconds of each pass of each model; the order of a turn alternates."""
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
    return times


def _summarize(model: nn.Module, example_input: Any, times: Sequence[float]) -> Latency:
    p25, median, p75 = statistics.quantiles(times, n=4, method="inclusive")
    threads, batch = torch.get_num_threads(), batch_size(example_input)
    return Latency(median, p25, p75, str(device_of(model)), threads, batch, len(times))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
