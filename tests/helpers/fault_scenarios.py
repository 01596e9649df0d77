# SPDX-License-Identifier: MIT
"""Short fits of every kind of pruning, for tests that interrupt them."""

import torch
from tiny_fits import loader

from regrow import (
    AccuracyBudget,
    ChannelPruning,
    Cubic,
    DynamicSparseTraining,
    Exponential,
    MagnitudePruning,
    Regrow,
    Table,
)


def gradual():
    return [MagnitudePruning(0.8, schedule=Cubic(0.1, 0.8, "2it"), keep_removed="moments")], {}


def soft():
    return [MagnitudePruning(0.8, schedule=Cubic(0.1, 0.8, "3it"), soft=True)], {}


def rigl():
    return [DynamicSparseTraining(0.7, every="3it", init="he")], {}


def rewound():
    schedule = Exponential(rate=0.4, every="5it", rounds=3)
    return [MagnitudePruning(schedule=schedule, criterion="taylor", rewind="2it")], {}


def regrown():
    pruning = MagnitudePruning(0.7, schedule=Table({"2it": 0.4, "6it": 0.7}))
    return [pruning, Regrow(at=["9it", "14it"], fraction=0.4, train="regrown")], {}


def judged():
    """A budget so small that events are rolled back."""
    pruning = MagnitudePruning(0.95, schedule=Table({"9it": 0.6, "13it": 0.95}))
    budget = AccuracyBudget("val/loss", 0.05, mode="min", recover="2it", resolution=0.1)
    return [pruning, budget], {"val": loader(2), "val_check_interval": 4, "max_epochs": 4}


def channels():
    schedule = Table({"3it": 0.25, "9it": 0.5})
    example = torch.zeros(2, 6)
    return [
        ChannelPruning(0.5, schedule=schedule, compact="event", example_input=example, round_to=1)
    ], {}


SCENARIOS = {act.__name__: act for act in (gradual, soft, rigl, rewound, regrown, judged, channels)}
