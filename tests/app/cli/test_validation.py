# SPDX-License-Identifier: MIT
"""Accuracy on validation samples, and gradients of training samples."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regrow.app.cli.sensitivity_command import Validation, leave_gradients
from regrow.app.data.digits import Digits


class Constant(nn.Module):
    """Says one class whatever it sees, and remembers what it saw."""

    def __init__(self, label):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.label, self.seen = label, []

    def forward(self, images):
        self.seen.append(images)
        return F.one_hot(torch.full((len(images),), self.label), 10) * self.scale


def whole(data):
    return tuple(torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))


@pytest.mark.parametrize("label", [0, 7])
def test_accuracy_is_the_correct_fraction(label):
    data = Digits(batch_size=50, val_size=120)
    evaluate = Validation(data)
    images, labels = whole(data)
    model = Constant(label)
    assert evaluate(model) == int((labels == label).sum()) / 120
    assert evaluate.count == 120
    assert torch.equal(torch.cat(model.seen), images)


def test_sample_is_drawn_once_from_the_whole_set():
    data = Digits(batch_size=16, val_size=120)
    images, _ = whole(data)
    drawn = []
    for _ in range(2):
        evaluate = Validation(data, 30)
        for _ in range(2):
            model = Constant(0)
            evaluate(model)
            assert evaluate.count == 30
            drawn.append(torch.cat(model.seen))
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    places = [int((images == one).flatten(1).all(1).nonzero()[0]) for one in drawn[0]]
    assert len({*places}) == 30
    assert places == sorted(places)
    assert min(places) < 30
    assert max(places) >= 90


def test_sample_size_above_the_set_means_the_whole_set():
    data = Digits(val_size=120)
    few, every = Validation(data, 10_000), Validation(data)
    one, other = Constant(3), Constant(3)
    assert few(one) == every(other)
    assert few.count == every.count == 120


def test_gradients_equal_those_of_the_mean_loss():
    data = Digits(batch_size=100, augment=None)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    net[2].running_mean.uniform_(-1, 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    assert leave_gradients(net, data, 3) == 300
    assert net.training
    found = {name: p.grad.clone() for name, p in net.named_parameters()}
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    data = Digits(batch_size=100, augment=None)
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(3), strict=False)]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    net.eval().zero_grad()
    F.cross_entropy(net(images), labels).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
