# SPDX-License-Identifier: MIT
"""Kept weights of several layers are refitted together."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow.calibration.calibrate import calibrated_layers, order_layers, refit_layers
from regrow.calibration.joint_refit import refit_jointly
from regrow.calibration.moments import Data


def draw(count=200, *shape, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)
    )


def pruned(dense, x):
    model = copy.deepcopy(dense)
    masks = regrow.prune(model, 0.6)
    data = Data([*x.split(64)])
    layers = order_layers(model, calibrated_layers(model, None, None), data)
    return model, masks, data, layers


def error_of(model, dense, x):
    with torch.no_grad():
        return float((model(x) - dense(x)).square().sum() / dense(x).square().sum())


def test_one_linear_layer_becomes_the_least_squares_solution():
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Linear(6, 3)), draw(200, 6)
    x[:, 3] += x[:, 2]  # so that kept weights take over
    model, masks, data, layers = pruned(dense, x)
    refit_jointly(model, dense, layers, masks, data, steps=200)
    y = dense(x).detach().double().numpy()
    for row, mask in enumerate(masks["0.weight"].numpy()):
        a = np.hstack([x.double().numpy()[:, mask], np.ones((200, 1))])
        solution = np.linalg.lstsq(a, y[:, row], rcond=None)[0]
        assert np.allclose(model[0].weight[row].detach()[mask], solution[:-1], atol=1e-3)
        assert np.allclose(model[0].bias[row].detach(), solution[-1], atol=1e-3)


def test_layers_together_are_nearer_to_the_dense_output_than_one_by_one():
    dense, x = perceptron(), draw(200, 6)
    model, masks, data, layers = pruned(dense, x)
    refit_layers(model, dense, layers, masks, data, 1e-3)
    alone = error_of(model, dense, x)
    found = refit_jointly(model, dense, layers, masks, data, depth=3)
    assert list(found) == ["4.weight"]
    assert error_of(model, dense, x) < 0.8 * alone
    assert found["4.weight"] == pytest.approx(error_of(model, dense, x), rel=1e-3)
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_each_few_layers_reproduce_the_output_of_their_last_one():
    dense, x = perceptron(), draw(200, 6)
    model, masks, data, layers = pruned(dense, x)
    before = error_of(model[:3], dense[:3], x)
    found = refit_jointly(model, dense, layers, masks, data, depth=2)
    assert list(found) == ["2.weight", "4.weight"]
    assert found["2.weight"] == pytest.approx(error_of(model[:3], dense[:3], x), rel=1e-3)
    assert found["2.weight"] < before


def test_sums_of_two_ranks_give_what_all_data_give():
    dense, x = perceptron(), draw(128, 6)
    whole, masks, data, layers = pruned(dense, x)
    refit_jointly(whole, dense, layers, masks, data, steps=3)
    twice, masks, _, layers = pruned(dense, x)  # as two ranks with the same data each
    doubled = Data(data.batches, total=lambda values: 2 * values)
    refit_jointly(twice, dense, layers, masks, doubled, steps=3)
    for one, other in zip(whole.parameters(), twice.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3, 10])
def test_layers_beside_each_other_are_refitted_too(depth):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 8)
            self.shortcut, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            y = self.second(self.first(x).relu())
            return self.last((y + self.shortcut(x)).relu())

    torch.manual_seed(0)
    dense, x = Residual(), draw(200, 6)
    model, masks, data, layers = pruned(dense, x)
    raw, start = error_of(model, dense, x), copy.deepcopy(model)
    refit_jointly(model, dense, layers, masks, data, depth=depth)
    assert error_of(model, dense, x) < raw
    for name, weight in start.named_parameters():
        assert not torch.equal(model.get_parameter(name), weight), name
