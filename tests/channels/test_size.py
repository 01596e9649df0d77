# SPDX-License-Identifier: MIT
"""Sizes predicted before a cut equal those counted after it."""

import copy

import pytest
import torch
from cut_oracle import distinct, half
from torch import nn

from regrow.channels import groups, prune
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import groups_from_trace
from regrow.channels.graph.trace import trace
from regrow.channels.size import Sizes
from regrow.profiling.macs import count_macs
from regrow.utils.errors import ConfigError

X = torch.zeros(2, 3, 8, 8, dtype=torch.float64)


def network():
    return distinct(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, stride=2, groups=8),
            nn.Conv2d(8, 12, 1),
            nn.Conv2d(12, 8, 3, groups=2),
            nn.Flatten(),
            nn.Linear(8, 6),
            nn.Linear(6, 2),
        )
    )


def counted(model, of):
    if of == "macs":
        return count_macs(model, X).macs
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("of", ["macs", "params"])
@pytest.mark.parametrize("seed", range(3))
def test_predicted_sizes_equal_those_of_the_cut_model(of, seed):
    model = network()
    traced = trace(model, X)
    found = groups_from_trace(traced, model)
    sizes = Sizes(model, found, X, of)
    assert sizes.dense == counted(model, of)
    removed = {name: c[: 1 + seed] for name, c in half(found, seed).items()}
    predicted = sizes.after(removed)
    assert not TrialCut(model, traced, found, X).find_valid(removed).failed
    assert predicted == counted(model, of)


def test_channels_are_counted_by_group():
    model = network()
    free = [group for group in groups(model, X) if not group.fixed_reason]
    sizes = Sizes(model, free, X, "channels")
    assert sizes.dense == sum(group.size for group in free) == 8 + 6 + 4 + 6
    assert sizes.after({"0": torch.arange(3)}) == 21
    with pytest.raises(ConfigError, match="channels"):
        Sizes(model, free, X, "channel")


@pytest.mark.parametrize("of", ["macs", "params", "channels"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8])
def test_remaining_size_meets_the_budget_closely(of, sparsity):
    model = network()
    free = [group for group in groups(model, X) if not group.fixed_reason]
    dense = copy.deepcopy(model)
    plan = prune(model, X, sparsity, of=of)
    if of == "channels":
        left = 1 - sum(plan.removed.values()) / sum(group.size for group in free)
    else:
        left = counted(model, of) / counted(dense, of)
    assert left <= 1 - sparsity
    assert left > 0.5 * (1 - sparsity), "no more goes than needs to"
