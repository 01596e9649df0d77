# SPDX-License-Identifier: MIT
"""A clock, listeners and a network for sessions in a plain loop, without a Trainer."""

from dataclasses import dataclass

import torch
from torch import nn

from regrow.schedules.time import Timeline

LENGTH = 8


@dataclass
class Clock:
    """A fit of eight steps in one epoch."""

    now: int = 0
    dry_run: bool = False
    length: int = LENGTH

    def current_step(self):
        return self.now

    def start_step(self):
        return self.now, 0

    def timeline(self, epochs):
        [first] = epochs.values()
        return Timeline(self.length - first, self.length, first)

    def position(self):
        return self.now, 0


class Listeners:
    """What a session calls around its events."""

    def __init__(self, allowed=True):
        self.allowed, self.seen = allowed, []

    def allows(self):
        return self.allowed

    def before(self):
        self.seen.append("before")

    def after(self, entry, before):
        self.seen.append((entry["step"], before, entry["after"]))

    def check_ranks(self, when):
        pass


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def zeros(net):
    weights = [p for p in net.parameters() if p.dim() > 1]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
