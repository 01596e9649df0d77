# SPDX-License-Identifier: MIT
"""Milestones."""

import pytest

from regrow.schedules.base import (
    Milestone,
    ProportionalLayers,
    drop_unchanged,
    step_within,
)
from regrow.schedules.time import Time, Timeline
from regrow.utils.errors import ConfigError


def test_last_step_is_within_the_fit_and_its_end_is_not():
    line = Timeline(total=10, start=20)
    assert step_within("at", Time(9, "it"), line) == 29
    with pytest.raises(ConfigError, match=r"at=10it is step 30, but the fit ends before step 30"):
        step_within("at", Time(10, "it"), line)
    with pytest.raises(ConfigError, match="the event would never come"):
        step_within("at", Time(1.0, "fit"), line)
    assert step_within("at", Time(99, "it"), Timeline(total=None)) == 99


def test_milestones_that_change_nothing_are_left_out():
    found = drop_unchanged(
        [Milestone(0, 0.0), Milestone(1, 0.5), Milestone(2, 0.5), Milestone(3, 0)], 0.0
    )
    assert found == (Milestone(1, 0.5), Milestone(3, 0))
    assert drop_unchanged([Milestone(1, 0.5)], 0.5) == ()


def test_layer_targets_move_in_proportion():
    rule = ProportionalLayers()
    assert rule.layer_sparsity(0.45, 0.9, 0.6) == pytest.approx(0.3)
    assert rule.layer_sparsity(0.9, 0.9, 0.6) == 0.6
    assert rule.layer_sparsity(0.0, 0.0, 0.6) == 0.6
