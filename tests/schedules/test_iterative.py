# SPDX-License-Identifier: MIT
"""Iterative pruning's schedule: 1 - (1 - rate)^k."""

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from regrow.schedules.iterative import Exponential
from regrow.schedules.time import Timeline
from regrow.utils.errors import ConfigError

ENDLESS = Timeline(total=None, steps_per_epoch=10)


@given(st.floats(0.01, 0.9), st.floats(0.01, 0.999))
def test_every_round_removes_the_rate_of_what_remains(rate, target):
    plan = Exponential(rate, every="10it").plan(target, ENDLESS)
    for k, milestone in enumerate(plan[:-1], start=1):
        assert milestone.sparsity == pytest.approx(1 - (1 - rate) ** k)
        assert milestone.sparsity < target
    assert plan[-1].sparsity == target, "the last round lands on the target exactly"
    assert 1 - (1 - rate) ** len(plan) > target - 1e-8
    assert [m.step for m in plan] == [10 * k for k in range(1, len(plan) + 1)]


def test_levels_equal_those_of_the_lottery_ticket_paper():
    """Frankle and Carbin 2019: 20 % a round leaves 51.2 % after 3, 21.1 % after 7, 3.6 after 15."""
    plan = Exponential(0.2, every="1ep").plan(1 - 0.8**15, ENDLESS)
    assert len(plan) == 15
    kept = {k: round(100 * (1 - plan[k - 1].sparsity), 1) for k in (3, 7, 12, 15)}
    assert kept == {3: 51.2, 7: 21.0, 12: 6.9, 15: 3.5}


@given(st.integers(1, 40), st.sampled_from([0.1, 0.2, 0.5]))
def test_rounds_gives_that_many_rounds(rounds, rate):
    schedule = Exponential(rate, "1it", rounds)
    assert schedule.final == 1 - (1 - rate) ** rounds
    assert len(schedule.plan(schedule.final, ENDLESS)) == rounds


def test_first_round_is_at_begin_or_after_one_interval():
    plan = Exponential(0.5, every="2ep", begin=0).plan(0.75, ENDLESS)
    assert [m.step for m in plan] == [0, 20]
    plan = Exponential(0.5, every="2ep", begin="3ep").plan(0.75, ENDLESS)
    assert [m.step for m in plan] == [30, 50]
    plan = Exponential(0.5, every=0.25).plan(0.75, Timeline(total=100))
    assert [m.step for m in plan] == [25, 50]


def test_rounds_continue_from_the_present_sparsity():
    plan = Exponential(0.5, every="1it").plan(0.9, ENDLESS, start=0.5)
    assert [m.sparsity for m in plan] == [0.75, 0.875, 0.9]
    assert Exponential(0.5, every="1it").plan(0.5, ENDLESS, start=0.5) == ()
    assert Exponential(0.5, every="1it").plan(0.0, ENDLESS) == ()


def test_fit_too_short_for_its_rounds_raises():
    with pytest.raises(ConfigError, match=r"0.9 takes 11 rounds of 10it at rate 0.2.*room for 9"):
        Exponential(0.2, every="10it").plan(0.9, Timeline(total=100))
    assert len(Exponential(0.2, every="9it").plan(0.9, Timeline(total=100))) == 11


def test_sparsity_that_contradicts_the_rounds_raises():
    with pytest.raises(ConfigError, match=r"3 rounds at rate 0.2 end at sparsity 0.488, but"):
        Exponential(0.2, "1ep", rounds=3).plan(0.9, ENDLESS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 20}, r"rate must be in \[0, 1\), got 20: write 0.2 for 20 %"),
        ({"rate": 0}, r"rate must be in \(0, 1\)"),
        ({"rounds": 0}, "rounds must be a whole number"),
        ({"every": 10}, "every=10 has no unit"),
        ({"every": "0ep"}, "every must be above 0"),
        ({"begin": 5}, "begin=5 has no unit"),
    ],
)
def test_wrong_settings_raise(settings, message):
    with pytest.raises(ConfigError, match=message):
        Exponential(**settings)


def test_layer_targets_take_as_many_rounds():
    """A layer bound for 0.5 while the others go to 0.9 removes its own fixed rate a round."""
    schedule = Exponential(0.2, every="1it")
    plan = schedule.plan(1 - 0.8**10, ENDLESS)
    own = [schedule.layer_sparsity(m.sparsity, plan[-1].sparsity, 0.5) for m in plan]
    kept = [1 - s for s in [0.0, *own]]
    rates = [b / a for a, b in itertools.pairwise(kept)]
    assert rates == pytest.approx([math.pow(0.5, 0.1)] * 10)
    assert own[-1] == pytest.approx(0.5)


@given(st.integers(1, 30), st.sampled_from([0.1, 0.2, 0.3, 0.5]), st.integers(20, 10**7), st.data())
def test_a_start_that_was_rounded_to_whole_weights_counts_as_its_round(rounds, rate, size, data):
    """As many rounds follow as from the exact sparsity, as long as a round takes a few weights."""
    schedule = Exponential(rate, "1it", rounds)
    done = data.draw(st.integers(0, rounds - 1))
    exact = 1 - (1 - rate) ** done
    pruned = round(exact * size)
    assume((size - pruned) * rate >= 3)
    start = schedule.nearest_round(pruned / size, schedule.final, lambda s: round(s * size))
    assert start == pytest.approx(exact, abs=1e-12)
    assert len(schedule.plan(schedule.final, ENDLESS, start)) == rounds - done


@pytest.mark.parametrize(
    ("pruned", "rounds"),
    [(0, 3), (30, 2), (31, 2), (32, 2), (29, 2), (28, 3), (51, 1), (53, 1), (64, 1), (65, 1)],
)
def test_a_start_between_rounds_keeps_its_place(pruned, rounds):
    """Of 100 weights three rounds of 0.3 prune 30, 51 and 65.7."""
    schedule = Exponential(0.3, "1it", rounds=3)
    start = schedule.nearest_round(pruned / 100, schedule.final, lambda s: round(100 * s))
    if pruned not in (29, 30, 31, 51):
        assert start == pruned / 100
    assert len(schedule.plan(schedule.final, ENDLESS, start)) == rounds
