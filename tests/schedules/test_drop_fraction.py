# SPDX-License-Identifier: MIT
"""Update steps of sparse training."""

import pytest

from regrow.schedules.drop_fraction import DropGrowSchedule
from regrow.schedules.time import Timeline
from regrow.utils.errors import ConfigError


def steps(updates, timeline, start=0.0):
    plan = updates.plan(0.9, timeline, start)
    assert all(milestone.sparsity == 0.9 for milestone in plan)
    return [milestone.step for milestone in plan]


@pytest.mark.parametrize(
    ("every", "end", "expected"),
    [
        ("10it", "35it", [0, 10, 20, 30]),
        ("10it", "30it", [0, 10, 20]),  # where the drop fraction is zero, nothing moves
        ("1ep", "3ep", [0, 20, 40]),
        (0.25, 1.0, [0, 25, 50, 75]),
        ("40it", 0.75, [0, 40]),
    ],
)
def test_updates_are_multiples_of_every_until_the_end(every, end, expected):
    assert steps(DropGrowSchedule(every, end), Timeline(100, 20)) == expected
    assert steps(DropGrowSchedule(every, end), Timeline(100, 20, 7)) == [
        7 + step for step in expected
    ]


def test_existing_masks_are_not_drawn_again():
    assert steps(DropGrowSchedule("10it", "35it"), Timeline(100), start=0.9) == [10, 20, 30]


@pytest.mark.parametrize(
    ("every", "end", "words"),
    [
        ("10it", "200it", "the fit ends before step 100"),
        ("50it", "40it", "no update before end"),
        ("50it", "50it", "no update before end"),
    ],
)
def test_times_outside_the_fit_raise(every, end, words):
    with pytest.raises(ConfigError, match=words):
        DropGrowSchedule(every, end).plan(0.9, Timeline(100))


@pytest.mark.parametrize("times", [(0, 0.75), ("0it", 0.75), ("10it", 0), (100, 0.75)])
def test_zero_times_and_bare_numbers_raise(times):
    with pytest.raises(ConfigError, match=r"must be above 0|has no unit"):
        DropGrowSchedule(*times)


def test_unknown_fit_length_works_with_absolute_times_only():
    assert steps(DropGrowSchedule("10it", "25it"), Timeline(None)) == [0, 10, 20]
    with pytest.raises(ConfigError, match="length is unknown"):
        DropGrowSchedule("10it", 0.5).plan(0.9, Timeline(None))
