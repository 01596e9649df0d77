# SPDX-License-Identifier: MIT
"""Layers that read removed channels are refitted against the dense network."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow.utils.errors import ConfigError, StateError


def draw(count=256, *shape, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)
    )


def images():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 12, 1), nn.ReLU(),
        nn.ConvTranspose2d(12, 8, 2, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    return model.eval()


CASES = {"perceptron": (perceptron, draw(256, 12)), "images": (images, draw(128, 3, 6, 6))}


@pytest.mark.parametrize("case", CASES)
def test_a_refit_brings_the_outputs_nearer_to_the_dense_ones(case):
    make, x = CASES[case]
    dense, new = make(), draw(*x.shape, seed=1)
    found = {}
    for refit in (None, x.split(64)):
        model = make()
        plan = regrow.channels.prune(model, x[:2], 0.3, round_to=1, refit=refit)
        found[refit is not None] = float((model(new) - dense(new)).norm().detach())
    assert found[True] < found[False]
    plan.undo()
    assert model(x).shape == dense(x).shape
    for name, value in model.state_dict().items():
        assert torch.equal(value, dense.state_dict()[name]), name


def test_the_last_layer_is_the_least_squares_solution_on_the_channels_that_are_left():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    dense, x = copy.deepcopy(model), draw(200, 6)
    plan = regrow.channels.prune(model, x[:2], 0.5, round_to=1, refit=[x])
    kept = plan.kept["2.weight"][1]
    with torch.no_grad():
        hidden = dense[:2](x)[:, kept].double().numpy()
        y = dense(x).double().numpy()
    # ridge towards the present weights as more equations, weights and outputs centred
    a, b = hidden - hidden.mean(0), y - y.mean(0)
    ridge = np.sqrt(1e-3 * (a * a).sum(0).mean()) * np.eye(4)
    before = dense[2].weight[:, kept].detach().double().numpy()
    solution = np.linalg.lstsq(np.vstack([a, ridge]), np.vstack([b, ridge @ before.T]), rcond=None)[
        0
    ].T
    assert np.allclose(model[2].weight.detach(), solution, atol=1e-5)
    bias = y.mean(0) - solution @ hidden.mean(0)
    assert np.allclose(model[2].bias.detach(), bias, atol=1e-5)
    assert torch.equal(model[0].weight, dense[0].weight[plan.kept["0.weight"][0]])


def test_a_cut_and_refitted_model_is_saved_and_loaded(tmp_path):
    model = perceptron()
    plan = regrow.channels.prune(model, draw(2, 12), 0.5, round_to=1, refit=[draw(256, 12)])
    loaded = perceptron()
    plan.apply(loaded)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(draw(4, 12)), model(draw(4, 12)))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ConfigError, "needs a batch or more"),
        ([torch.full((4, 12), torch.nan)], StateError, "are not finite"),
    ],
    ids=["no batch", "NaN"],
)
def test_bad_data_changes_nothing(data, error, message):
    model = perceptron()
    with pytest.raises(error, match=message):
        regrow.channels.prune(model, draw(2, 12), 0.5, refit=data)
    assert all(map(torch.equal, model.parameters(), perceptron().parameters()))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 12), nn.Linear(12, 16)
        self.d = nn.Linear(16, 12)
        self.d.weight, self.c.weight = self.b.weight, self.a.weight

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x).relu())).relu())


def with_weight_norm():
    last = nn.utils.parametrizations.weight_norm(nn.Linear(16, 4))
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), last)


@pytest.mark.parametrize(
    ("make", "name"),
    [(Tied, r"b\.weight"), (with_weight_norm, r"2\.parametrizations\.weight\.original1")],
)
def test_layers_that_are_not_refitted_are_named(make, name):
    x = draw(256, 12)
    with pytest.warns(UserWarning, match=f"refit= leaves {name} as they are"):
        regrow.channels.prune(make(), x[:2], 0.5, refit=[x])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regrow.channels.prune(perceptron(), x[:2], 0.5, refit=[x])
