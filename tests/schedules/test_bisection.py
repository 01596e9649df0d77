# SPDX-License-Identifier: MIT
from hypothesis import given
from hypothesis import strategies as st

from regrow.schedules.bisection import Bisection


def test_no_candidate_before_a_failure():
    search = Bisection(0.01)
    search.accept(0.3)
    assert search.next() is None


@given(limit=st.floats(0.0, 0.98), resolution=st.floats(0.005, 0.2))
def test_search_ends_within_its_resolution_of_the_limit(limit, resolution):
    """Every sparsity up to `limit` is accepted and none above it."""
    search = Bisection(resolution)
    search.reject(0.99)
    tries = 0
    while (tried := search.next()) is not None:
        (search.accept if tried <= limit else search.reject)(tried)
        tries += 1
    assert search.highest_accepted <= limit
    assert search.lowest_rejected - search.highest_accepted <= resolution * 1.000001
    assert tries <= 9


def test_state_round_trip():
    search, other = Bisection(0.01), Bisection(0.01)
    search.accept(0.5)
    search.reject(0.8)
    other.load_state_dict(search.state_dict())
    assert other == search
