# SPDX-License-Identifier: MIT
"""Progress through a plan, compared with a loop over all steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.schedules.base import Milestone
from regrow.schedules.gradual import Linear
from regrow.schedules.progress import Progress, resumed_plan
from regrow.schedules.time import Timeline
from regrow.utils.errors import ConfigError


@st.composite
def plans(draw, most=40):
    steps = sorted(draw(st.sets(st.integers(0, most), max_size=8)))
    levels = sorted(draw(st.sets(st.integers(1, 99), min_size=len(steps), max_size=len(steps))))
    return tuple(Milestone(step, level / 100) for step, level in zip(steps, levels, strict=True))


def walk(progress, steps):
    """Fires what is due at each of the steps; returns (step, sparsity) of each event."""
    fired = []
    for step in steps:
        due = progress.due(step)
        if due is not None:
            fired.append((step, due.sparsity))
            progress.mark_done(due)
    return fired


@given(plans())
def test_every_milestone_comes_once_at_its_step(plan):
    progress = Progress(plan)
    assert walk(progress, range(42)) == list(plan)
    assert progress.reached
    assert walk(progress, range(42)) == []


@given(plans(), st.sets(st.integers(0, 45)))
def test_of_missed_milestones_only_the_last_is_due(plan, asked):
    """If steps are skipped, the highest level that is due counts, and nothing happens twice."""
    expected, level = [], 0.0
    for step in sorted(asked):
        now = max([m.sparsity for m in plan if m.step <= step], default=0.0)
        if now > level:
            expected.append((step, now))
            level = now
    assert walk(Progress(plan), sorted(asked)) == expected


@given(plans(), st.integers(0, 45))
def test_progress_restored_at_any_step_continues_unchanged(plan, cut):
    whole, first = Progress(plan, start=0.1, epochs={2: 3}), Progress(plan, 0, 0.1, {2: 3, 3: 9})
    expected = walk(whole, range(46))
    before = walk(first, range(cut))
    again = Progress()
    again.load_state_dict(first.state_dict())
    assert again == first
    assert before + walk(again, range(cut, 46)) == expected


def test_plan_may_repeat_levels_and_return_to_zero():
    plan = (Milestone(2, 0.9), Milestone(4, 0.0), Milestone(6, 0.9), Milestone(8, 0.0))
    assert walk(Progress(plan), range(9)) == list(plan)
    assert walk(Progress(plan), [5, 7, 9]) == [(5, 0.0), (7, 0.9), (9, 0.0)]


def test_started_and_reached_follow_the_plan():
    assert not Progress().started
    assert Progress((), 0, 0.0, {0: 0}).reached
    progress = Progress((Milestone(3, 0.5),), epochs={4: 30, 5: 38})
    assert progress.first == 30
    assert progress.started
    assert not progress.reached
    assert progress.remaining == progress.plan


STORED = (Milestone(5, 0.3), Milestone(10, 0.6), Milestone(15, 0.9))
LATER = (Milestone(10, 0.3), Milestone(20, 0.6), Milestone(30, 0.9))
EARLIER = (Milestone(2, 0.3), Milestone(4, 0.6), Milestone(6, 0.9))


@pytest.mark.parametrize("on_change", ["refuse", "stretch"])
def test_unchanged_plan_is_kept_on_resume(on_change):
    assert resumed_plan(STORED, STORED, 1, 6, on_change) == STORED


@pytest.mark.parametrize("on_change", ["refuse", "stretch"])
def test_finished_plan_is_kept_on_resume(on_change):
    assert resumed_plan(STORED, LATER, 3, 16, on_change) == STORED


def test_keep_uses_the_stored_plan():
    def later(timeline, start):
        return LATER

    def refused(timeline, start):
        raise ConfigError("no room")

    for resolve in (later, refused):
        progress = Progress(STORED, 1)
        assert not progress.resume(resolve, Timeline(40), 6, "keep")
        assert progress.plan == STORED
    assert Progress(LATER, 1).resume(later, Timeline(40), 6, "keep")


def test_stretch_moves_events_later_or_earlier():
    assert resumed_plan(STORED, LATER, 1, 6, "stretch") == (STORED[0], *LATER[1:])
    assert resumed_plan(STORED, LATER, 0, 3, "stretch") == LATER
    assert resumed_plan(STORED, EARLIER, 1, 5, "stretch") == (STORED[0], *EARLIER[1:])


def test_after_a_stretch_the_last_of_the_events_that_are_past_comes_at_once():
    for now, sparsity in [(5, 0.6), (9, 0.9)]:
        progress = Progress(resumed_plan(STORED, EARLIER, 1, now, "stretch"), 1)
        assert walk(progress, range(now, 20))[0] == (now, sparsity)


PHASES = tuple(Milestone(step, level) for step, level in [(4, 0.9), (8, 0.0), (12, 0.9), (16, 0.0)])


def test_phases_go_on_from_the_one_that_should_be_now():
    """Stored with other numbers of phases than planned, at step 9: it should be dense."""
    dense, sparse = (Milestone(2, 0.9), Milestone(6, 0.0)), (Milestone(2, 0.9),)
    assert resumed_plan((*dense, Milestone(10, 0.9)), PHASES, 2, 9, "stretch")[2:] == PHASES[2:]
    assert resumed_plan((*sparse, Milestone(10, 0.0)), PHASES, 1, 9, "stretch")[1:] == PHASES[1:]


def test_updates_at_one_sparsity_are_not_made_good():
    updates = tuple(Milestone(step, 0.9) for step in (0, 4, 8, 12))
    assert resumed_plan(updates[:3], updates, 1, 6, "stretch") == (updates[0], *updates[2:])


def test_a_plan_that_was_stretched_resumes_without_a_change():
    """What happened before a change of lengths does not count."""
    stretched = resumed_plan(STORED, LATER, 1, 6, "stretch")
    for now in (7, 12, 19):
        assert resumed_plan(stretched, LATER, 1, now, "refuse") == stretched
    assert resumed_plan(stretched, LATER, 2, 25, "refuse") == stretched


def test_a_milestone_that_equals_a_past_one_is_marked():
    plan = (Milestone(4, 0.9), Milestone(6, 0.0), Milestone(4, 0.9))
    progress = Progress(plan, 2)
    progress.mark_done(plan[2])
    assert progress.reached


def test_what_belongs_to_a_later_epoch_waits_while_the_present_one_is_longer_than_planned():
    """The second of two epochs begins at step 4 and should end before step 8."""
    progress = Progress((Milestone(6, 0.5), Milestone(8, 0.9)), epochs={0: 0, 1: 4})
    timeline = Timeline(16, 4)
    assert [progress.due(step, timeline) for step in (5, 7, 9)] == [None, *progress.plan[:1] * 2]
    assert progress.due(9) == progress.plan[1]
    progress.epochs[2] = 11
    assert progress.due(11, Timeline(23, ((0, 4), (1, 7), (2, 4)))) == progress.plan[1]


def test_a_change_without_a_plan_raises_by_name():
    def none(timeline, start):
        raise ConfigError("no room")

    with pytest.raises(ConfigError, match=r"epochs have other lengths.*no room"):
        Progress(STORED).replan(none, Timeline(40), 3)


def test_refuse_raises_with_both_plans():
    message = r"plans 2 from step 10 .*0\.6\) to step 15 .*0\.9\), while now 3 from step 10"
    with pytest.raises(ConfigError, match=message):
        resumed_plan(STORED, LATER, 1, 6, "refuse")


@given(plans(), plans(), st.integers(0, 40))
def test_stretch_keeps_past_milestones_and_never_lowers_sparsity(stored, planned, now):
    progress = Progress(stored)
    walk(progress, range(now))
    plan = resumed_plan(stored, planned, progress.n_done, now, "stretch")
    assert plan[: progress.n_done] == stored[: progress.n_done]
    events = walk(Progress(plan, progress.n_done), range(now, 42))
    levels = [sparsity for _, sparsity in events]
    assert levels == sorted(levels)
    if planned and progress.n_done < len(stored) and planned != stored:
        assert plan[-1].sparsity == planned[-1].sparsity


def planned(timeline, start):
    return Linear(0, 0.5, 0.25).plan(0.8, timeline, start)


def test_resume_compares_with_the_present_timeline():
    plan = planned(Timeline(40), 0.0)
    progress = Progress(plan, 1, 0.0, {0: 0})
    progress.resume(planned, Timeline(40), 12, "refuse")
    assert progress.plan == plan
    with pytest.raises(ConfigError, match="events still to come"):
        progress.resume(planned, Timeline(80), 12, "refuse")
    progress.resume(planned, Timeline(80), 12, "stretch")
    assert [m.step for m in progress.remaining] == [40]


def test_resume_in_a_fit_that_ends_before_the_last_event_raises():
    progress = Progress(planned(Timeline(40), 0.0), 1, 0.0, {0: 0})
    with pytest.raises(ConfigError, match="plans an event at step 20, but the fit now ends before"):
        progress.resume(planned, Timeline(20), 12, "keep")


def test_resume_with_unknown_end_keeps_the_plan():
    progress = Progress(planned(Timeline(40), 0.0), 1, 0.0, {0: 0})
    progress.resume(planned, Timeline(None), 12, "keep")
    assert len(progress.remaining) == 1
