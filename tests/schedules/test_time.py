# SPDX-License-Identifier: MIT
"""Times and the steps they stand for."""

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
