# SPDX-License-Identifier: MIT
"""Kept weights of several layers are refitted together."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow.calibration.calibrate import calibrated_layers, refit_layers
from regrow.calibration.joint_refit import refit_jointly
from regrow.calibration.moments import Data, order_layers
from regrow.utils.errors import ConfigError, StateError


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
    layers = order_layers(model, calibrated_layers(model, None, None), data.batches)
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
    start = copy.deepcopy(model)
    found = refit_jointly(model, dense, layers, masks, data)
    assert error_of(model, dense, x) < 0.8 * alone
    assert found == pytest.approx(error_of(model, dense, x), rel=1e-3)
    found = refit_jointly(start, dense, calibrated_layers(start, None, None), masks, data, depth=1)
    parts = [error_of(start[:end], dense[:end], x) for end in (1, 3, 5)]
    assert found == pytest.approx(sum(parts), rel=1e-3)
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_sums_of_two_ranks_give_what_all_data_give():
    dense, x = perceptron(), draw(128, 6)
    whole, masks, data, layers = pruned(dense, x)
    refit_jointly(whole, dense, layers, masks, data, steps=3)
    twice, masks, _, layers = pruned(dense, x)  # as two ranks with the same data each
    doubled = Data(data.batches, total=lambda values: 2 * values)
    refit_jointly(twice, dense, layers, masks, doubled, steps=3)
    for one, other in zip(whole.parameters(), twice.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_blocks_are_the_largest_modules_that_are_called():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleList([nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))])
            self.body.append(copy.deepcopy(self.body[0]))
            self.last = nn.Linear(6, 3)

        def forward(self, x):
            return {"size": 3, "logits": self.last(self.body[1](self.body[0](x)))}

    torch.manual_seed(0)
    dense, x = Wrapped(), draw(200, 6)
    model, masks, data, layers = pruned(dense, x)
    with torch.no_grad():
        found = {depth: refit_jointly(model, dense, layers, masks, data, depth) for depth in (2, 5)}
        now, before, errors = x, x, []
        for own, other in zip([*model.body, model.last], [*dense.body, dense.last], strict=True):
            now, before = own(now), other(before)
            errors.append(float((now - before).square().sum() / before.square().sum()))
    assert found[5] == pytest.approx(errors[-1], rel=1e-3)
    assert found[5] < found[2]


def test_layers_beside_each_other_are_refitted_too():
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
    refit_jointly(model, dense, layers, masks, data)
    assert error_of(model, dense, x) < raw
    for name, weight in start.named_parameters():
        assert not torch.equal(model.get_parameter(name), weight), name


def test_activations_in_place_make_no_difference():
    torch.manual_seed(0)
    x, found = draw(200, 6), []
    dense = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    for in_place in (False, True):
        dense[1].inplace = in_place
        model, masks, data, layers = pruned(dense, x)
        refit_jointly(model, dense, layers, masks, data, steps=5)
        found.append([*model.parameters()])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_layers(packed):
    torch.manual_seed(0)
    dense, x = nn.LSTM(6, 8, num_layers=2), draw(9, 32, 6)
    if packed:
        x = nn.utils.rnn.pack_padded_sequence(x, [9 - n // 4 for n in range(32)])
    model = copy.deepcopy(dense)
    masks = regrow.prune(model, 0.6)
    data = Data([{"input": x}])
    layers = calibrated_layers(model, None, None)
    raw = refit_jointly(model, dense, layers, masks, data, steps=1)
    assert refit_jointly(model, dense, layers, masks, data) < 0.5 * raw


def test_outputs_without_gradients_are_refused():
    dense, x = perceptron(), draw(200, 6)
    model, masks, data, layers = pruned(dense, x)
    model.forward = torch.no_grad()(model.forward)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=r"no gradient.*refit=True"):
        refit_jointly(model, dense, layers, masks, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_become_infinite_are_refused_and_restored(monkeypatch):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    before, step = copy.deepcopy(dense.state_dict()), torch.optim.LBFGS.step

    def diverge(solver, closure):
        step(solver, closure)
        solver.param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.LBFGS, "step", diverge)
    with pytest.raises(StateError, match=r"not finite.*refit=True"):
        regrow.calibrate(dense, [torch.randn(64, 8)], 0.5, criterion="magnitude", refit="joint")
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


def test_weights_in_channels_last_are_refitted_as_others():
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3)), draw(16, 3, 8, 8)
    found = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        given = copy.deepcopy(dense).to(memory_format=layout)
        model, masks, data, layers = pruned(given, x)
        start = error_of(model, given, x)
        refit_jointly(model, given, layers, masks, data, steps=10)
        assert error_of(model, given, x) < start
        assert all(p.grad is None for p in model.parameters())
        assert model[0].weight.is_contiguous(memory_format=layout)
        found[layout] = [*model.parameters()]
    for one, other in zip(*found.values(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    net = copy.deepcopy(dense).to(memory_format=torch.channels_last)
    assert regrow.calibrate(net, [x], 0.5, refit="joint").sparsity == 0.5
    masks = regrow.prune(net, 0.9)
    assert "joint" in regrow.repair(net, dense, masks, [x], at_least=2.0).measures
