# SPDX-License-Identifier: MIT
"""From sensitivities to a next step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regrow import MagnitudePruning, Pruner
from regrow.pruning.config import PruningConfig
from regrow.sensitivity_analysis.recommend import (
    Recommendation,
    find_limit,
    recommend,
    sort_by_limit,
)
from regrow.sensitivity_analysis.scan import Sensitivities, Sensitivity


def row(name, accuracy, sparsity=0.0):
    return Sensitivity(name, 100, sparsity, 100, 0.5, None, accuracy)


def test_limit_requires_all_lower_sparsities_to_hold():
    assert find_limit(row("a", {0.5: 0.9, 0.7: 0.7, 0.9: 0.9}), 0.9, 0.01) == 0.5
    assert find_limit(row("a", {0.9: 0.9, 0.5: 0.7}), 0.9, 0.01) == 0


def test_limit_ignores_float_rounding_of_the_drop():
    assert 0.97 - 0.96 > 0.01
    assert find_limit(row("a", {0.5: 0.96}), 0.97, 0.01) == 0.5
    assert find_limit(row("a", {0.5: 0.95}), 0.97, 0.01) == 0


def test_limit_is_at_least_the_present_sparsity():
    assert find_limit(row("a", {0.5: 0.9, 0.7: 0.1}, 0.6), 0.9, 0.01) == 0.6
    assert find_limit(row("a", {0.7: 0.1}, 0.6), 0.9, 0.01) == 0.6


@given(
    st.dictionaries(st.floats(0.01, 0.99), st.floats(0, 1), min_size=1),
    st.floats(0, 1),
    st.floats(0.001, 0.2),
)
def test_larger_allowed_drop_never_lowers_the_limit(accuracy, now, max_drop):
    one = row("a", accuracy)
    found = find_limit(one, now, max_drop)
    assert found <= find_limit(one, now, max_drop + 0.1)
    assert all(now - a <= max_drop + 1e-6 for s, a in accuracy.items() if s <= found)


def test_layers_are_sorted_by_limit_then_by_drop():
    rows = [
        row("little", {0.5: 0.895, 0.9: 0.2}),
        row("nothing", {0.5: 0.5, 0.9: 0.1}),
        row("all", {0.5: 0.9, 0.9: 0.9}),
        row("less", {0.5: 0.893, 0.9: 0.4}),
    ]
    order = sort_by_limit(Sensitivities(0.9, tuple(rows), {}), 0.01)
    assert [one.name for one in order] == ["all", "less", "little", "nothing"]


def test_recommendation_is_accepted_by_pruners():
    """The words are those of the callbacks; the names are the model's."""
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10))
    rows = (
        row("0.weight", {0.5: 0.9, 0.7: 0.5}),
        row("1.weight", {0.5: 0.1, 0.7: 0.1}),
        row("2.weight", {0.5: 0.1, 0.7: 0.1}, 0.33333),
    )
    step = recommend(Sensitivities(0.9, rows, {}), 0.01)
    assert step == Recommendation({"0.weight": 0.5, "2.weight": 0.3334}, ["1.weight"])
    MagnitudePruning(layers=step.layers, exclude=step.exclude)
    pruner = Pruner(net, PruningConfig(layers=step.layers, exclude=step.exclude))
    pruner.prune_to(0.9)
    zeros = [int((layer.weight == 0).sum()) for layer in net]
    assert zeros == [50, 0, 33]


@pytest.mark.parametrize("sparsity", [1 / 3, 0.1, 0.29, 0.9999999, 1e-7])
def test_recommended_target_is_never_below_the_present_sparsity(sparsity):
    step = recommend(Sensitivities(0.9, (row("a", {0.99999999: 0.1}, sparsity),), {}), 0.01)
    assert sparsity <= step.layers["a"] < 1


def test_groups_of_one_layer_are_excluded_by_the_layers_name():
    rows = (row("fc#2", {0.5: 0.1}), row("fc", {0.5: 0.1}), row("conv", {0.5: 0.9}))
    assert recommend(Sensitivities(0.9, rows, {}), 0.01).exclude == ["fc"]
