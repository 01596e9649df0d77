# SPDX-License-Identifier: MIT
"""Mean and spread, against NumPy."""

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.report.statistics import Spread, compute_spreads

accuracies = st.lists(st.floats(-1, 1, allow_nan=False), min_size=1, max_size=20)


def spread(values):
    rows = pandas.DataFrame({"key": "all", "x": values})
    [found] = compute_spreads(rows.groupby("key"), ["x"])
    return found["x"]


@given(accuracies)
def test_mean_and_spread_equal_numpys(values):
    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.n == len(values)
    if len(values) == 1:
        assert found.deviation is None
    else:
        assert found.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_groups_are_separate_and_incomplete_columns_are_skipped():
    rows = {"key": ["b", "a", "b"], "x": [1.0, 5.0, 3.0], "y": [1.0, 2.0, None]}
    first, second = compute_spreads(pandas.DataFrame(rows).groupby("key", sort=False), ["x", "y"])
    assert first == {"x": Spread(2.0, pytest.approx(2**0.5), 2)}
    assert second == {"x": Spread(5.0, None, 1), "y": Spread(2.0, None, 1)}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Spread(0.90, 0.01, 3), Spread(0.915, 0.01, 3), True),  # .89 to .91, .905 to .925
        (Spread(0.90, 0.01, 3), Spread(0.93, 0.01, 3), False),  # .89 to .91, .92 to .94
        (Spread(0.90, 0.10, 3), Spread(0.90, 0.0, 3), True),  # one within the other
        (Spread(0.90, None, 1), Spread(0.90, 0.01, 3), None),  # one value has no interval
    ],
)
def test_overlap_of_intervals_by_hand(one, other, expected):
    assert one.overlaps(other) is expected
    assert other.overlaps(one) is expected
