# SPDX-License-Identifier: MIT
"""Models timed beside one another."""

import time

import pytest
import torch
from torch import nn

from regrow.profiling.latency import latencies
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
