# SPDX-License-Identifier: MIT
from hypothesis import given
from hypothesis import strategies as st

from regrow.schedules.bisection import Search


def test_no_candidate_before_a_failure():
    search = Search(0.01)
    search.hold(0.3)
    assert search.candidate() is None


@given(limit=st.floats(0.0, 0.98), resolution=st.floats(0.005, 0.2))
def test_ends_within_a_resolution_of_the_limit(limit, resolution):
    """Against a world in which every sparsity up to `limit` holds and none above."""
    search = Search(resolution)
    search.fail(0.99)
    tries = 0
    while (tried := search.candidate()) is not None:
        (search.hold if tried <= limit else search.fail)(tried)
        tries += 1
    assert search.held <= limit
    assert search.failed - search.held <= resolution * 1.000001
    assert tries <= 9


def test_state_round_trip():
    search, other = Search(0.01), Search(0.01)
    search.hold(0.5)
    search.fail(0.8)
    other.load_state_dict(search.state_dict())
    assert other == search
