# SPDX-License-Identifier: MIT
"""The dynamic program over layers and levels, against all combinations."""

import itertools

import numpy as np
import pytest

from regrow.calibration.knapsack import Knapsack
from regrow.utils.errors import ConfigError


def by_brute_force(losses, costs, budget):
    """The least loss of all combinations that cost at most the budget."""
    found = [
        sum(loss[k] for loss, k in zip(losses, levels, strict=True))
        for levels in itertools.product(*(range(len(loss)) for loss in losses))
        if sum(cost[k] for cost, k in zip(costs, levels, strict=True)) <= budget
    ]
    return min(found, default=None)


@pytest.mark.parametrize("seed", range(5))
def test_whole_costs_give_the_best_of_all_combinations(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(2, 6, 4)
    losses = [random.random(size).tolist() for size in sizes]
    costs = [random.integers(1, 60, size).tolist() for size in sizes]
    knapsack = Knapsack(losses, costs)
    for budget in range(sum(map(min, costs)), sum(map(max, costs)) + 10, 3):
        levels = knapsack.choose(budget)
        assert sum(cost[k] for cost, k in zip(costs, levels, strict=True)) <= budget
        loss = sum(loss[k] for loss, k in zip(losses, levels, strict=True))
        assert loss == pytest.approx(by_brute_force(losses, costs, budget))


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_other_costs_keep_to_the_budget_and_lose_little(scale):
    random = np.random.default_rng(0)
    losses = [np.sort(random.random(6)).tolist() for _ in range(4)]
    costs = [(np.sort(random.random(6))[::-1] * scale).tolist() for _ in range(4)]
    total, least = sum(map(max, costs)), sum(map(min, costs))
    knapsack = Knapsack(losses, costs, steps=2000)
    for budget in np.linspace(1.02 * least, total, 12):
        levels = knapsack.choose(budget)
        assert sum(cost[k] for cost, k in zip(costs, levels, strict=True)) <= budget * (1 + 1e-12)
        loss = sum(loss[k] for loss, k in zip(losses, levels, strict=True))
        # each of the four costs is rounded up by less than one step
        assert loss <= by_brute_force(losses, costs, budget - 4 * total / 2000) + 1e-12


def test_a_budget_below_the_cheapest_levels_is_refused():
    with pytest.raises(ConfigError, match="at least 3"):
        Knapsack([[0.0, 1.0], [0.0, 1.0]], [[5, 1], [4, 2]]).choose(2)


def test_the_cheapest_levels_are_allowed_although_rounding_would_exceed_the_budget():
    costs = [[1.0, 0.9999], [1.0, 0.9999], [1.0, 0.9999]]
    knapsack = Knapsack([[0.0, 1.0]] * 3, costs, steps=10)
    assert knapsack.choose(knapsack.least) == [1, 1, 1]
    equal = Knapsack([[0.0, 1.0]] * 3, [[0.7, 0.7]] * 3, steps=10)
    assert equal.choose(equal.least) == [0, 0, 0]
