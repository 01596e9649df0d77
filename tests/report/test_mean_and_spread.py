# SPDX-License-Identifier: MIT
"""Mean and spread, against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.report.statistics import Spread, compute_spread

accuracies = st.lists(st.floats(-1, 1, allow_nan=False), min_size=1, max_size=20)


@given(accuracies)
def test_as_numpy(values):
    found = compute_spread(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.n == len(values)
    if len(values) == 1:
        assert found.deviation is None
    else:
        assert found.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_no_values():
    with pytest.raises(ValueError, match="no values"):
        compute_spread([])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Spread(0.90, 0.01, 3), Spread(0.915, 0.01, 3), True),  # .89 to .91, .905 to .925
        (Spread(0.90, 0.01, 3), Spread(0.93, 0.01, 3), False),  # .89 to .91, .92 to .94
        (Spread(0.90, 0.10, 3), Spread(0.90, 0.0, 3), True),  # one within the other
        (Spread(0.90, None, 1), Spread(0.90, 0.01, 3), None),  # one value has no interval
    ],
)
def test_intervals(one, other, expected):
    assert one.overlaps(other) is expected
    assert other.overlaps(one) is expected
