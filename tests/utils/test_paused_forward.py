# SPDX-License-Identifier: MIT
"""Forward passes that wait before calls of modules."""

import threading

import pytest
import torch
from torch import nn

from regrow.utils.paused_forward import PausedForward


class Recorded(nn.Module):
    """Doubles its input, and records what it got."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen.append(float(x))
        return 2 * x


def test_passes_run_in_turns_to_the_modules_that_they_are_sent_to():
    seen = []
    net = nn.Sequential(*(Recorded(seen) for _ in range(3)))
    passes = [PausedForward(net, torch.tensor(x)) for x in (1.0, 10.0)]
    assert [float(one.run_to(net[1])[0][0]) for one in passes] == [2.0, 20.0]
    assert seen == [1.0, 10.0]
    assert [float(one.run_to(net[2])[0][0]) for one in reversed(passes)] == [40.0, 4.0]
    assert passes[0].run_to(net[0]) is None  # it is not called again
    assert seen == [1.0, 10.0, 20.0, 2.0, 4.0]
    assert passes[0].run_to(net[0]) is None
    for one in passes:
        one.end()
    assert seen == [1.0, 10.0, 20.0, 2.0, 4.0]  # the rest is left out
    assert float(net(torch.tensor(1.0))) == 8.0


def test_changes_of_a_module_count_while_a_pass_waits_before_it():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Identity())
    for layer in net[:2]:
        nn.init.ones_(layer.weight)
    forward = PausedForward(net, {"input": torch.ones(1)})
    forward.run_to(net[1])
    with torch.no_grad():
        net[1].weight.fill_(5.0)
    (x,), _ = forward.run_to(net[2])
    assert x.tolist() == [5.0]
    assert not x.requires_grad
    forward.end()


def test_errors_of_the_model_are_raised_where_the_pass_is_run():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("broken")

    net = nn.Sequential(Broken(), nn.Identity())
    forward = PausedForward(net, torch.ones(1))
    with pytest.raises(ValueError, match="broken"):
        forward.run_to(net[1])
    forward.end()


def test_a_pass_that_never_ran_can_end():
    net, before = nn.Sequential(nn.Identity()), threading.active_count()
    PausedForward(net, torch.ones(1)).end()
    forward = PausedForward(net, torch.ones(1))
    forward.run_to(net[0])
    assert threading.active_count() == before + 1
    forward.end()
    assert threading.active_count() == before
