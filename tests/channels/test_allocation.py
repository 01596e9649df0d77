# SPDX-License-Identifier: MIT
"""Allocation: least important channels first, within the budget, in rounded counts."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from regrow.channels.allocation import allocate, rounding
from regrow.channels.graph.groups import Group
from regrow.utils.errors import ConfigError

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def counter(groups, prices=None):
    prices = prices or {group.name: 1.0 for group in groups}
    total = sum(group.size * prices[group.name] for group in groups)
    return lambda removed: total - sum(len(c) * prices[name] for name, c in removed.items())


def made(sizes, seed):
    groups = [Group(f"g{i}", size, {}) for i, size in enumerate(sizes)]
    generator = torch.Generator().manual_seed(seed)
    return groups, {g.name: torch.rand(g.size, generator=generator) for g in groups}


def chosen(groups, scores, fraction, **settings):
    size = counter(groups)
    try:
        return allocate(groups, scores, size, fraction * size({}), **settings)
    except ConfigError:
        assume(False)


def test_least_important_channels_are_removed_by_hand():
    groups = [Group("a", 4, {}), Group("b", 3, {})]
    scores = {"a": torch.tensor([4.0, 1, 6, 2]), "b": torch.tensor([3.0, 9, 8])}
    found = allocate(groups, scores, counter(groups), 4, round_to=1)
    assert {name: c.tolist() for name, c in found.items()} == {"a": [1, 3], "b": [0]}


@given(SIZES, st.integers(0, 99), st.floats(0.05, 1), st.sampled_from([1, 2, 4, "auto"]),
       st.integers(1, 3), st.sampled_from(["global", "uniform"]))  # fmt: skip
def test_allocation_meets_budget_rounding_and_minimum(
    sizes, seed, fraction, multiple, floor, distribution
):
    groups, scores = made(sizes, seed)
    settings = {"round_to": multiple, "min_channels": floor, "distribution": distribution}
    found = chosen(groups, scores, fraction, **settings)
    assert counter(groups)(found) <= fraction * sum(sizes)
    for group in groups:
        gone = found.get(group.name, torch.tensor([], dtype=torch.int64))
        kept = group.size - len(gone)
        assert len(gone.unique()) == len(gone)
        if len(gone):
            assert kept % rounding(group.size, multiple) == 0
            assert kept >= floor
            stays = torch.ones(group.size, dtype=torch.bool).index_fill(0, gone, False)
            assert scores[group.name][gone].max() <= scores[group.name][stays].min()


@given(SIZES, st.integers(0, 99), st.integers(2, 16), st.integers(2, 16))
def test_smaller_budget_never_keeps_more(sizes, seed, one, two):
    groups, scores = made(sizes, seed)
    for sixteenths in sorted((one, two)):
        removed = chosen(groups, scores, sixteenths / 16, round_to=1)
        left = counter(groups)(removed)
        assert left == sixteenths * sum(sizes) // 16, "as little less as possible"


@given(SIZES, st.integers(0, 99), st.floats(0.2, 1))
def test_uniform_takes_the_same_fraction_of_each(sizes, seed, fraction):
    groups, scores = made([4 * size for size in sizes], seed)
    found = chosen(groups, scores, fraction, round_to=1, distribution="uniform")
    shares = [len(found.get(g.name, ())) / g.size for g in groups]
    for share, group in zip(shares, groups, strict=True):
        assert abs(share - max(shares)) <= 1 / group.size + 1e-9


@given(st.lists(st.integers(2, 12), min_size=2, max_size=4), st.integers(0, 99), st.floats(0.3, 1))
def test_groups_with_different_costs_meet_the_budget(sizes, seed, fraction):
    groups, scores = made(sizes, seed)
    size = counter(groups, {g.name: 10.0**i for i, g in enumerate(groups)})
    budget = fraction * size({})
    try:
        found = allocate(groups, scores, size, budget, round_to=1)
    except ConfigError:
        assert size({g.name: torch.arange(g.size - 1) for g in groups}) > budget
    else:
        assert size(found) <= budget


@given(st.integers(4, 30), st.integers(0, 99), st.integers(1, 3))
def test_removed_channels_stay_removed(size, seed, gone):
    groups, scores = made([size, size], seed)
    first = {"g0": torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:gone]}
    found = allocate(groups, scores, counter(groups), size, round_to=1, gone=first)
    assert {*first["g0"].tolist()} <= {*found["g0"].tolist()}
    assert counter(groups)(found) <= size


def test_unreachable_budgets_and_wrong_settings_raise():
    groups, scores = made([8, 8], 0)
    with pytest.raises(ConfigError, match=r"2 cannot be reached: with 3 channel\(s\) kept .* 6 of"):
        allocate(groups, scores, counter(groups), 2, min_channels=3, round_to=1)
    for wrong in ({"distribution": "even"}, {"min_channels": 0}, {"round_to": 0}):
        with pytest.raises(ConfigError):
            allocate(groups, scores, counter(groups), 8, **wrong)


def test_rounding_multiple_depends_on_the_width():
    assert [rounding(n, "auto") for n in (31, 32, 63, 64)] == [1, 8, 8, 16]
    assert rounding(100, 4) == 4
