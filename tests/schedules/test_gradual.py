# SPDX-License-Identifier: MIT
"""Schedules against their formulas."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.schedules.base import Schedule
from regrow.schedules.cyclic import Cyclic
from regrow.schedules.gradual import Cosine, Cubic, Linear
from regrow.schedules.iterative import Exponential
from regrow.schedules.one_shot import OneShot, Table
from regrow.schedules.registry import SCHEDULES, make_schedule
from regrow.schedules.time import Timeline
from regrow.utils.errors import ConfigError

LINE = Timeline(total=1000, steps_per_epoch=50)
FORMULAS = {
    Linear: lambda p: p,
    Cubic: lambda p: 1 - (1 - p) ** 3,  # Zhu and Gupta 2017, eq. 1
    Cosine: lambda p: 0.5 * (1 - math.cos(math.pi * p)),
}


@given(
    st.sampled_from(list(FORMULAS)),
    st.integers(0, 400),
    st.integers(1, 500),
    st.integers(1, 500),
    st.floats(0.01, 0.99),
    st.floats(0, 1),
)
def test_gradual_schedules_follow_their_formula(kind, begin, length, every, target, share):
    every = min(every, length)
    end, start = begin + length, target * share * 0.99
    plan = kind(f"{begin}it", f"{end}it", f"{every}it").plan(target, LINE, start)
    assert plan[-1] == (end, target), "the event at the end lands on the target exactly"
    assert [m.step for m in plan] == sorted({m.step for m in plan})
    assert all(a.sparsity < b.sparsity for a, b in itertools.pairwise(plan))
    for step, sparsity in plan[:-1]:
        assert (step - begin) % every == 0
        progress = (step - begin) / length
        assert sparsity == pytest.approx(start + (target - start) * FORMULAS[kind](progress))


def test_cubic_equals_the_formula_of_zhu_and_gupta():
    s_i, s_f, t0, n, delta = 0.0, 0.875, 100, 10, 20
    plan = Cubic("100it", "300it", "20it").plan(s_f, LINE)
    for t, s_t in plan:
        wanted = s_f + (s_i - s_f) * (1 - (t - t0) / (n * delta)) ** 3
        assert s_t == pytest.approx(wanted)
    assert len(plan) == 10


def test_event_at_the_end_is_never_missed():
    """every does not divide the way: the last event still comes at the end."""
    plan = Linear("0it", "95it", "30it").plan(0.8, LINE)
    assert [m.step for m in plan] == [30, 60, 90, 95]
    assert plan[-1].sparsity == 0.8


def test_epochs_and_fractions_become_steps():
    plan = Linear("1ep", "4ep", "1ep").plan(0.9, LINE)
    assert [m.step for m in plan] == [100, 150, 200]
    assert [m.step for m in Linear(0.2, 0.75, 0.25).plan(0.9, LINE)] == [450, 700, 750]
    late = Timeline(total=1000, steps_per_epoch=50, start=10)
    assert [m.step for m in Linear("1ep", "4ep", "1ep").plan(0.9, late)] == [110, 160, 210]


@pytest.mark.parametrize("kind", [Linear, Cubic, Cosine])
def test_begin_equal_to_end_is_one_shot(kind):
    assert kind("5it", "5it", "1it").plan(0.9, LINE) == ((5, 0.9),)


@pytest.mark.parametrize("kind", [Linear, Cubic, Cosine, Cyclic])
def test_every_longer_than_begin_to_end_raises(kind):
    schedule = kind("10it", "20it", "11it")
    with pytest.raises(ConfigError, match=r"every=11it \(11 steps\) is longer than begin to end"):
        schedule.plan(0.9, LINE)


@pytest.mark.parametrize("kind", [Linear, Cubic, Cosine, Cyclic])
@pytest.mark.parametrize(
    ("times", "message"),
    [
        (("5ep", "3ep", "1ep"), "begin=5ep lies after end=3ep"),
        ((5, "3ep", "1ep"), "begin=5 has no unit"),
        (("1ep", "3ep", 0), "every must be above 0"),
        (("1ep", "3ep", "often"), "every must be a time"),
    ],
)
def test_wrong_times_raise_at_construction(kind, times, message):
    with pytest.raises(ConfigError, match=message):
        kind(*times)


def test_times_outside_the_fit_raise_when_planned():
    with pytest.raises(ConfigError, match=r"begin=5ep \(step 250\) lies after end=100it"):
        Linear("5ep", "100it", "1it").plan(0.9, LINE)
    with pytest.raises(ConfigError, match="end=20ep is step 1000, but the fit ends before step"):
        Linear("5ep", "20ep", "1ep").plan(0.9, LINE)
    with pytest.raises(ConfigError, match="at=2000it is step 2000"):
        OneShot("2000it").plan(0.9, LINE)
    with pytest.raises(ConfigError, match="fraction of a fit whose length is unknown"):
        Cubic().plan(0.9, Timeline(total=None, steps_per_epoch=50))


def test_one_shot_has_one_milestone():
    assert OneShot("3ep").plan(0.9, LINE) == ((150, 0.9),)
    assert OneShot(0).plan(0.9, LINE) == ((0, 0.9),)
    assert OneShot(0).plan(0.9, LINE, start=0.9) == ()


def test_cyclic_phases_alternate():
    plan = Cyclic("100it", "500it", "100it").plan(0.8, LINE)
    assert plan == ((100, 0.8), (200, 0.0), (300, 0.8), (400, 0.0), (500, 0.8))
    dense = Cyclic("100it", "400it", "100it", last="dense").plan(0.8, LINE)
    assert dense == ((100, 0.8), (200, 0.0), (300, 0.8), (400, 0.0))
    assert Cyclic("100it", "250it", "100it", last="sparse").plan(0.8, LINE)[-1].sparsity == 0.8
    with pytest.raises(ConfigError, match="last must be one of dense, sparse"):
        Cyclic(last="wet")


def test_dense_sparse_dense_ends_dense():
    plan = Cyclic("1ep", "3ep", "2ep", last="dense").plan(0.5, LINE)
    assert plan == ((50, 0.5), (150, 0.0))


def test_cycle_that_never_prunes_raises():
    with pytest.raises(ConfigError, match="nothing would ever be pruned"):
        Cyclic("3it", "3it", "1it", last="dense").plan(0.5, Timeline(10))
    assert Cyclic("3it", "3it", "1it").plan(0.5, Timeline(10)) == ((3, 0.5),)


def test_table_gives_its_own_milestones():
    table = Table({"3ep": 0.5, 0.5: 0.0, "700it": 0.9})
    assert table.plan(0.9, LINE) == ((150, 0.5), (500, 0.0), (700, 0.9))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "a table needs rows"),
        ([("3ep", 0.5)], "a table needs rows"),
        ({3: 0.5}, "a table's time=3 has no unit"),
        ({"3ep": 50}, "the table's sparsity at 3ep must be in .* write 0.5 for 50 %"),
        ({"3ep": 0.9, "6ep": 0.5}, "the table falls from 0.9 to 0.5 at 6ep"),
    ],
)
def test_wrong_tables_raise_at_construction(rows, message):
    with pytest.raises(ConfigError, match=message):
        Table(rows)


def test_tables_outside_the_fit_raise_when_planned():
    with pytest.raises(ConfigError, match=r"ends at sparsity 0.5, but sparsity=0.9 was asked"):
        Table({"3ep": 0.5}).plan(0.9, LINE)
    with pytest.raises(ConfigError, match=r"must follow one another, got steps \[150, 100\]"):
        Table({"3ep": 0.5, "2ep": 0.9}).plan(0.9, LINE)


def test_names_make_schedules():
    assert isinstance(make_schedule("cubic"), Cubic)
    assert make_schedule("one_shot", begin="3ep") == OneShot("3ep")
    assert make_schedule("exponential", every="2ep") == Exponential(every="2ep")
    assert make_schedule("linear", "1ep", "5ep", "1ep") == Linear("1ep", "5ep", "1ep")
    for name in SCHEDULES:
        made = make_schedule(name)
        assert isinstance(made, Schedule)
        assert made.times()
        assert make_schedule(made) is made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "cubik"}, "did you mean 'cubic'"),
        ({"schedule": 3}, "schedule must be a name"),
        ({"schedule": Linear}, "schedule must be a name"),
        ({"schedule": Linear(), "every": "1ep"}, "every beside a schedule object"),
        ({"schedule": "one_shot", "end": "3ep"}, "schedule='one_shot' has no end: it has begin"),
        ({"schedule": "one_shot", "every": 0.1, "end": 0.5}, "has no end and no every"),
        ({"schedule": "exponential", "end": "3ep"}, "schedule='exponential' has no end"),
        ({"schedule": "cubic", "every": 10}, "every=10 has no unit"),
    ],
)
def test_unknown_schedule_names_raise(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(**arguments)


def test_schedules_compare_by_value():
    assert Cubic() == Cubic()
    assert Linear("1ep") != Linear("2ep")
    assert Cubic() != Linear()
    assert repr(Linear()) == "Linear(begin=0.2, end=0.75, every=0.01)"


@pytest.mark.parametrize("schedule", [Linear(), Cubic(), Cosine(), OneShot(), Cyclic()])
def test_layer_targets_are_reached_together(schedule):
    assert schedule.layer_sparsity(0.9, 0.9, 0.3) == 0.3
    assert schedule.layer_sparsity(0.45, 0.9, 0.3) == pytest.approx(0.15)
