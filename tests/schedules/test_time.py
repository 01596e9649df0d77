# SPDX-License-Identifier: MIT
"""Times and the steps they stand for."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.schedules.time import Time, Timeline, parse_time
from regrow.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "time", "text"),
    [
        ("3ep", Time(3, "ep"), "3ep"),
        (" 500 it ", Time(500, "it"), "500it"),
        ("0ep", Time(0, "ep"), "0ep"),
        (0.25, Time(0.25, "fit"), "0.25"),
        (1.0, Time(1.0, "fit"), "1"),
        (0, Time(0, "it"), "0it"),
        (0.0, Time(0, "it"), "0it"),
    ],
)
def test_times_are_parsed_and_printed(given, time, text):
    assert parse_time("at", given) == time
    assert str(time) == text


@pytest.mark.parametrize("given", [500, 2, 3.0])
def test_bare_numbers_raise(given):
    n = int(given)
    with pytest.raises(ConfigError, match=f"every={given} has no unit: write '{n}ep' or '{n}it'"):
        parse_time("every", given)


def test_bare_one_raises_with_three_spellings():
    with pytest.raises(ConfigError, match=r"write '1ep', '1it' or 1.0"):
        parse_time("every", 1)


@pytest.mark.parametrize(
    "given", ["3", "ep", "3 epochs", "-1ep", "1.5ep", -0.5, 1.5, float("nan"), None, True, [3]]
)
def test_other_words_raise(given):
    with pytest.raises(ConfigError, match="must be a time such as '3ep'"):
        parse_time("every", given)


def test_times_become_steps():
    line = Timeline(total=1000, steps_per_epoch=100)
    assert line.step(Time(3, "ep")) == 300
    assert line.step(Time(42, "it")) == 42
    assert line.step(Time(0.25, "fit")) == 250
    assert line.end == 1000


def test_a_later_fit_counts_from_its_start():
    line = Timeline(total=1000, steps_per_epoch=100, start=5000)
    assert line.step(Time(3, "ep")) == 5300
    assert line.step(Time(42, "it")) == 5042
    assert line.step(Time(0.5, "fit")) == 5500
    assert line.end == 6000
    assert line.length(Time(2, "ep")) == 200


def test_epochs_may_differ_in_length():
    """Accumulation of 1, 2 and 4 batches from epochs 0, 3 and 5 on, 100 batches an epoch."""
    line = Timeline(None, ((0, 100), (3, 50), (5, 25)))
    lengths = [100] * 3 + [50] * 2 + [25] * 4
    for epoch in range(len(lengths) + 1):
        assert line.step(Time(epoch, "ep")) == sum(lengths[:epoch])
    assert line.repeat(Time(1, "ep"), Time(2, "ep"), 451) == [100, 300, 400, 450]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 90), st.integers(0, 5))
def test_an_interval_of_epochs_keeps_its_place_within_the_epoch(lengths, step, count):
    """A walk over all steps by hand: step s of n in an epoch leads to s / n of a later one."""
    line = Timeline(None, tuple(enumerate(lengths)), start=7)
    starts = list(accumulate([*lengths, *[lengths[-1]] * 120], initial=0))
    epoch = max(k for k, begin in enumerate(starts) if begin <= step)
    share = (step - starts[epoch]) / (starts[epoch + 1] - starts[epoch])
    assert line.epochs(7 + step) == pytest.approx(epoch + share)
    later = epoch + count
    expected = 7 + starts[later] + share * (starts[later + 1] - starts[later])
    if count:
        assert abs(line.after(7 + step, Time(count, "ep")) - expected) <= 0.5 + 1e-6
    if share == 0 and count:
        assert line.after(7 + step, Time(count, "ep")) == expected


def test_an_interval_from_a_fraction_of_the_fit_comes_once_an_epoch():
    line = Timeline(30, ((0, 4), (1, 8), (2, 6)))  # from the middle of the first epoch
    assert line.repeat(Time(2 / 30, "fit"), Time(1, "ep"), 30) == [2, 8, 15, 21, 27]
    assert line.length(Time(1, "ep"), since=8) == 7


def test_the_end_of_an_estimate_is_unknown():
    line = Timeline(30, 6, estimated=True)
    assert line.end is None
    assert line.step(Time(0.5, "fit")) == 15
    assert line == Timeline(30, 6)


def test_times_that_need_an_unknown_length_raise():
    endless = Timeline(total=None)
    assert endless.end is None
    assert endless.step(Time(0, "ep")) == 0
    with pytest.raises(
        ConfigError, match=r"end=0.5 is a fraction of a fit whose length.*max_steps"
    ):
        endless.step(Time(0.5, "fit"), "end")
    with pytest.raises(ConfigError, match=r"end=3ep needs to know.*limit_train_batches"):
        endless.step(Time(3, "ep"), "end")


@given(st.integers(0, 50), st.integers(1, 30), st.integers(0, 200), st.sampled_from(["ep", "it"]))
def test_repeat_equals_range(begin, every, end, unit):
    line = Timeline(total=200, steps_per_epoch=4, start=7)
    scale = 4 if unit == "ep" else 1
    found = line.repeat(Time(begin, unit), Time(every, unit), end)
    assert found == list(range(7 + begin * scale, end, every * scale))


def test_every_is_at_least_one_step():
    assert Timeline(total=10).length(Time(0.01, "fit")) == 1
