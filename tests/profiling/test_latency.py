# SPDX-License-Identifier: MIT
"""Models timed beside one another."""

import itertools
import time

import numpy as np
import pytest
import torch
from torch import nn

from regrow.profiling.latency import compare_latency, latencies
from regrow.utils.errors import ConfigError


class Sleeper(nn.Module):
    def __init__(self, name, seconds, calls):
        super().__init__()
        self.name, self.seconds, self.calls = name, seconds, calls

    def forward(self, x):
        self.calls.append((self.name, self.training))
        time.sleep(self.seconds)
        return x


def test_models_are_timed_alternately_in_eval_mode():
    calls = []
    slow, fast = Sleeper("slow", 0.02, calls), Sleeper("fast", 0.002, calls)
    fast.eval()
    found = latencies([slow, fast], torch.zeros(3, 2), repeats=5, warmup=1)
    there, back = ["slow", "fast"], ["fast", "slow"]
    assert [name for name, _ in calls] == [*back, *there] * 3
    assert not any(training for _, training in calls)
    assert (slow.training, fast.training) == (True, False)
    assert found[0].median_ms >= 20
    assert 2 <= found[1].median_ms < found[0].median_ms
    assert [(t.batch, t.repeats) for t in found] == [(3, 5), (3, 5)]


def test_one_repeat_raises():
    with pytest.raises(ConfigError, match="repeats must be a whole number of at least 2"):
        latencies([nn.Identity()], torch.zeros(1, 2), repeats=1)


@pytest.mark.parametrize("resamples", [0, 0.5, True])
def test_no_resamples_raise(resamples):
    with pytest.raises(ConfigError, match="resamples must be a whole number of at least 1"):
        compare_latency(
            nn.Identity(), nn.Identity(), torch.zeros(1, 2), repeats=2, resamples=resamples
        )


class Clock:
    """Time that passes only in forward passes."""

    def __init__(self):
        self.now = 0.0


class Timed(nn.Module):
    """A model whose passes take given milliseconds; `copied` are those of its copies."""

    def __init__(self, clock, milliseconds, copied=None):
        super().__init__()
        self.clock, self.copied = clock, milliseconds if copied is None else copied
        self.times = itertools.cycle(milliseconds)

    def forward(self, x):
        self.clock.now += next(self.times) / 1e3
        return x

    def __deepcopy__(self, memo):
        return Timed(self.clock, self.copied)


@pytest.fixture
def compared(monkeypatch):
    """Compares two models of given milliseconds; gives the speed-up."""

    def compare(reference, model, copied=None, repeats=20):
        clock = Clock()
        monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
        found = compare_latency(
            Timed(clock, reference, copied),
            Timed(clock, model),
            torch.zeros(2, 3),
            repeats=repeats,
            warmup=0,
        )
        assert found.reference.median_ms == pytest.approx(np.median(reference))
        assert found.model.median_ms == pytest.approx(np.median(model))
        return found.speedup

    return compare


def test_constant_times_have_an_exact_ratio(compared):
    found = compared([6.0], [2.0])
    assert (found.ratio, found.low, found.high) == (pytest.approx(3),) * 3
    assert found.noise == pytest.approx(1)
    assert found.is_faster
    assert not found.is_slower
    assert str(found) == "3.00x as fast (3.00 to 3.00)"
    assert compared([2.0], [6.0]).is_slower


def test_difference_that_a_copy_shows_too_is_noise(compared):
    """The copy takes 10 % longer than the reference, though they are equal."""
    found = compared([10.0], [9.5], copied=[11.0])
    assert found.noise == pytest.approx(1.1)
    assert not found.is_faster
    assert str(found) == "within noise: 1.05x (1.05 to 1.05)"
    assert compared([10.0], [9.0], copied=[11.0]).is_faster


def test_interval_covers_the_medians_of_resampled_turns(compared):
    """Against the quantiles of all medians of resampled turns, drawn here with other numbers."""
    generator = np.random.default_rng(7)
    first = generator.uniform(9, 11, 20).tolist()
    second = [
        time / 2 + shift for time, shift in zip(first, generator.normal(0, 0.2, 20), strict=True)
    ]
    found = compared(first, second)
    a, b = np.asarray(first), np.asarray(second)
    turns = generator.integers(20, size=(20_000, 20))
    ratios = np.median(a[turns], axis=1) / np.median(b[turns], axis=1)
    assert found.ratio == pytest.approx(np.median(a) / np.median(b))
    np.testing.assert_allclose(
        (found.low, found.high), np.quantile(ratios, (0.025, 0.975)), atol=0.03
    )
