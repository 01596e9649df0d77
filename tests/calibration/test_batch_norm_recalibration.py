# SPDX-License-Identifier: MIT
"""Statistics of norms are the plain means over batches, and nothing else changes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from regrow.channels import recalibrate
from regrow.utils.errors import ConfigError, StateError


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)
    return nn.Sequential(
        *layers, nn.Conv2d(4, 3, 3), nn.InstanceNorm2d(3, track_running_stats=True)
    )


def batches(count=3):
    return [torch.randn(5, 2, 8, 8) for _ in range(count)]


def test_means_and_variances_equal_numpys():
    model, given = net().double(), [b.double() for b in batches()]
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert recalibrate(model, iter(given)) == 3
    assert torch.equal(torch.get_rng_state(), random)
    with torch.no_grad():
        first = [model[0](b).numpy() for b in given]
    means = np.mean([x.mean((0, 2, 3)) for x in first], 0)
    variances = np.mean([x.var((0, 2, 3), ddof=1) for x in first], 0)
    assert np.abs(model[1].running_mean.numpy() - means).max() < 1e-12
    assert np.abs(model[1].running_var.numpy() - variances).max() < 1e-12
    # the next norm reads what this one makes of its batch, without dropout
    scales = [
        (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
        for x in first
    ]
    with torch.no_grad():
        second = [model[4](torch.from_numpy(x).relu()).numpy() for x in scales]
    means = np.mean([x.mean((2, 3)).mean(0) for x in second], 0)
    assert np.abs(model[5].running_mean.numpy() - means).max() < 1e-12
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    own = {"running_mean", "running_var", "num_batches_tracked"}
    assert {name.rpartition(".")[2] for name in changed} == own
    assert [model[1].momentum, model[5].momentum] == [0.1, 0.1]
    assert all(module.training for module in model.modules())


def test_nothing_changes_after_an_error():
    model = net().eval()
    before = copy.deepcopy(model.state_dict())
    for given, error, words in (
        ([], ConfigError, "got none: write"),
        ([*batches(1), batches(1)[0] * float("nan")], StateError, "1 is not finite"),
        ([*batches(1), torch.zeros(2, 7, 8, 8)], RuntimeError, "channels"),
    ):
        with pytest.raises(error, match=words):
            recalibrate(model, given)
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
        assert model[1].momentum == 0.1
        assert not any(module.training for module in model.modules())


def test_inputs_may_be_tuples_or_dicts():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2, momentum=None)

        def forward(self, x, y):
            return self.norm(x + y)

    model, x = Two(), torch.randn(4, 2)
    recalibrate(model, [(x, x), {"x": x, "y": x}])
    assert torch.allclose(model.norm.running_mean, 2 * x.mean(0))
    assert model.norm.momentum is None


def test_norms_that_do_not_run_keep_their_statistics():
    class Warm(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.training_only = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
            self.training_only.running_mean.fill_(3.0)
            self.training_only.running_var.fill_(5.0)

        def forward(self, x):
            x = self.always(x)
            return self.training_only(x) if self.training else x

    model, x = Warm(), torch.randn(16, 2) + 1
    assert recalibrate(model, [x]) == 1
    assert torch.allclose(model.always.running_mean, x.mean(0))
    assert model.training_only.running_mean.tolist() == [3.0, 3.0]
    assert model.training_only.running_var.tolist() == [5.0, 5.0]
    assert int(model.training_only.num_batches_tracked) == 0
    assert model.training_only.training
    assert not model.training_only._forward_pre_hooks
