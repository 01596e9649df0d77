# SPDX-License-Identifier: MIT
"""A cut is tried: groups that fail are not cut and have a reason, the others are cut."""

import pytest
import torch
from cut_oracle import Net, distinct
from torch import nn

from regrow.channels import prune

IMAGE = torch.zeros(2, 3, 8, 8, dtype=torch.float64)


def net(run):
    own = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1), "c": nn.Conv2d(8, 2, 1)}
    return distinct(Net(run, **own, d=nn.Conv2d(8, 2, 1)))


def half_fixed(m, x):
    """The width of `a` is written in the code, that of `b` is not."""
    return m.c(m.a(x).view(len(x), 8, 8, 8)) + m.d(m.b(x))


def test_groups_that_fail_are_kept_and_other_groups_make_up_for_them():
    model = net(half_fixed)
    plan = prune(model, IMAGE, 0.5)
    assert plan.removed == {"b": 4}
    assert "shape" in plan.not_prunable["a"]
    assert model.a.out_channels == 8


def test_model_with_a_fixed_batch_size_is_cut():
    """Other batch sizes fail before the cut, so they are not required after it."""
    model = net(lambda m, x: m.c(m.a(x).relu()).view(2, 2, 8, 8) + m.d(m.b(x)))
    assert prune(model, IMAGE, 0.5).removed


@pytest.mark.parametrize("training", [False, True])
def test_trial_runs_leave_statistics_modes_and_random_state_unchanged(training):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 2, 1)
    )  # fmt: skip
    model = distinct(model).train(training)
    mean = model[1].running_mean.clone()
    state = torch.get_rng_state()
    plan = prune(model, IMAGE, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training is training for module in model.modules())
    assert torch.equal(model[1].running_mean, mean[plan.kept["1.running_mean"][0]])
    assert model[1].num_batches_tracked == 0
