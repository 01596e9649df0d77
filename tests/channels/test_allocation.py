# SPDX-License-Identifier: MIT
"""Allocation: least important channels first, within the budget, in rounded counts."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from regrow.channels.allocation import allocate
from regrow.channels.config import ChannelConfig, rounding
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


def allocated(groups, scores, size, budget, own=None, gone=None, links=(), **settings):
    config = ChannelConfig(**settings).validated()
    return allocate(groups, scores, size, budget, config, own=own, gone=gone, links=links)


def chosen(groups, scores, fraction, **settings):
    size = counter(groups)
    try:
        return allocated(groups, scores, size, fraction * size({}), **settings)
    except ConfigError:
        assume(False)


def test_least_important_channels_are_removed_by_hand():
    groups = [Group("a", 4, {}), Group("b", 3, {})]
    scores = {"a": torch.tensor([4.0, 1, 6, 2]), "b": torch.tensor([3.0, 9, 8])}
    found = allocated(groups, scores, counter(groups), 4, round_to=1)
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
        found = allocated(groups, scores, size, budget, round_to=1)
    except ConfigError:
        assert size({g.name: torch.arange(g.size - 1) for g in groups}) > budget
    else:
        assert size(found) <= budget


@given(st.integers(4, 30), st.integers(0, 99), st.integers(1, 3))
def test_removed_channels_stay_removed(size, seed, gone):
    groups, scores = made([size, size], seed)
    first = {"g0": torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:gone]}
    found = allocated(groups, scores, counter(groups), size, round_to=1, gone=first)
    assert {*first["g0"].tolist()} <= {*found["g0"].tolist()}
    assert counter(groups)(found) <= size


@given(st.lists(st.integers(4, 40), min_size=2, max_size=4), st.integers(0, 99),
       st.floats(0, 0.9), st.floats(0.4, 1), st.sampled_from([1, 2, 4, "auto"]))  # fmt: skip
def test_own_fraction_is_as_near_as_rounding_allows_and_the_others_meet_the_budget(
    sizes, seed, fraction, left, multiple
):
    groups, scores = made(sizes, seed)
    found = chosen(groups, scores, left, round_to=multiple, own={"g0": fraction})
    size, step = sizes[0], rounding(sizes[0], multiple)
    possible = [*range(step, size, step), size]
    nearest = min(abs(kept - (1 - fraction) * size) for kept in possible)
    kept = size - len(found.get("g0", ()))
    assert kept in possible
    assert abs(kept - (1 - fraction) * size) == pytest.approx(nearest)
    assert counter(groups)(found) <= left * sum(sizes)


def test_groups_with_own_fractions_keep_them_at_any_budget():
    groups, scores = made([10, 10], 0)
    for left in (20, 12):
        found = allocated(groups, scores, counter(groups), left, round_to=1, own={"g0": 0.3})
        assert len(found["g0"]) == 3
        assert len(found.get("g1", ())) == max(0, 20 - left - 3)


def test_own_fraction_counts_what_is_removed_already():
    groups, scores = made([8, 8], 0)
    gone = {"g0": torch.tensor([3, 5])}
    for own, count in ((0.25, 2), (0.0, 2), (0.5, 4)):
        settings = {"round_to": 1, "gone": gone, "own": {"g0": own}}
        found = allocated(groups, scores, counter(groups), 16, **settings)
        assert len(found["g0"]) == count
        assert {3, 5} <= {*found["g0"].tolist()}


def test_linked_groups_take_the_own_fraction_of_one_of_them():
    groups, scores = made([8, 16, 9], 0)
    settings = {"round_to": 1, "links": [("g0", "g1")]}
    found = allocated(groups, scores, counter(groups), 33, own={"g1": 0.25}, **settings)
    assert {name: len(channels) for name, channels in found.items()} == {"g0": 2, "g1": 4}
    with pytest.raises(ConfigError, match=r"g0, g1 work only .* asks for 0\.25 and 0\.5"):
        allocated(groups, scores, counter(groups), 33, own={"g0": 0.5, "g1": 0.25}, **settings)


@given(st.lists(st.integers(4, 40), min_size=1, max_size=4), st.integers(0, 99),
       st.floats(0.1, 0.9), st.floats(0.3, 1))  # fmt: skip
def test_no_group_loses_more_than_the_limit(sizes, seed, most, left):
    groups, scores = made(sizes, seed)
    scores["g0"] = scores["g0"] - 2  # ranked below all others
    found = chosen(groups, scores, left, round_to=1, max_sparsity=most)
    assert all(len(found.get(g.name, ())) <= most * g.size + 1e-6 for g in groups)


def test_isomorphic_ranking_by_hand():
    # a and b compete for 3 of their 6 channels, c alone loses 2 of 4, whatever its scores
    groups = [Group("a", 3, {}, kind="x"), Group("b", 3, {}, kind="x"), Group("c", 4, {}, kind="y")]
    scores = {
        "a": torch.tensor([1.0, 2, 9]),
        "b": torch.tensor([3.0, 8, 7]),
        "c": torch.tensor([90.0, 60, 80, 70]),
    }
    settings = {"distribution": "isomorphic", "round_to": 1}
    found = allocated(groups, scores, counter(groups), 5, **settings)
    assert {name: c.tolist() for name, c in found.items()} == {"a": [0, 1], "b": [0], "c": [1, 3]}


@given(SIZES, st.integers(0, 99), st.floats(0.2, 1))
def test_isomorphic_is_global_for_one_kind_and_uniform_for_kinds_of_one_group(sizes, seed, left):
    groups, scores = made(sizes, seed)
    own_kinds = [Group(g.name, g.size, {}, kind=g.name) for g in groups]
    for kinds, same in ((groups, "global"), (own_kinds, "uniform")):
        one = chosen(kinds, scores, left, round_to=1, distribution="isomorphic")
        other = chosen(kinds, scores, left, round_to=1, distribution=same)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_unreachable_budgets_and_wrong_settings_raise():
    groups, scores = made([8, 8], 0)
    with pytest.raises(ConfigError, match=r"2 cannot be reached: with 3 channel\(s\) kept .* 6 of"):
        allocated(groups, scores, counter(groups), 2, min_channels=3, round_to=1)
    for wrong in ({"distribution": "even"}, {"min_channels": 0}, {"round_to": 0}):
        with pytest.raises(ConfigError):
            allocated(groups, scores, counter(groups), 8, **wrong)


def test_rounding_multiple_depends_on_the_width():
    assert [rounding(n, "auto") for n in (31, 32, 63, 64)] == [1, 8, 8, 16]
    assert rounding(100, 4) == 4
