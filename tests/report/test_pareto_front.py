# SPDX-License-Identifier: MIT
"""The front, against its definition."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.report.statistics import pareto_front

# few different numbers, so that ties and equal points occur
number = st.integers(0, 6) | st.floats(-5, 5, allow_nan=False)
points = st.lists(st.tuples(number, number), max_size=30)


def dominates(other, one):
    no_worse = other[0] <= one[0] and other[1] >= one[1]
    return no_worse and (other[0] < one[0] or other[1] > one[1])


@given(points)
def test_front_holds_the_points_that_no_other_dominates(found):
    expected = [not any(dominates(other, one) for other in found) for one in found]
    assert pareto_front([cost for cost, _ in found], [value for _, value in found]) == expected


def test_equal_points_are_both_on_it():
    assert pareto_front([1, 1, 2], [0.9, 0.9, 0.8]) == [True, True, False]


def test_infinite_costs_are_compared():
    assert pareto_front([math.inf, 1], [0.9, 0.8]) == [True, True]


@pytest.mark.parametrize("bad", [([math.nan], [1]), ([1], [math.nan]), ([1, 2], [1])])
def test_nan_and_unequal_lengths_raise(bad):
    with pytest.raises(ValueError, match=r"NaN|zip"):
        pareto_front(*bad)
