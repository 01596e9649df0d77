# SPDX-License-Identifier: MIT
"""Layers whose weights are computed, by weight norm or spectral norm, lose channels.

The reference computes the weights in NumPy from what a cut keeps of their parameters.
"""

import copy

import numpy as np
import pytest
import torch
from cut_oracle import check, distinct, noise
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from regrow.channels import groups, prune
from regrow.channels.cut.channel_cut import ChannelCut

pytestmark = pytest.mark.filterwarnings("ignore:.*(deprecated|weight_norm|spectral_norm)")
ROW = torch.zeros(2, 6, dtype=torch.float64)
IMAGE = torch.zeros(2, 3, 6, 6, dtype=torch.float64)

WEIGHT_NORMS = {"hooks": nn.utils.weight_norm, "parametrized": parametrizations.weight_norm}
SPECTRAL_NORMS = {"hooks": nn.utils.spectral_norm, "parametrized": parametrizations.spectral_norm}
DIRECTION = {"hooks": "weight_v", "parametrized": "parametrizations.weight.original1"}
LENGTH = {"hooks": "weight_g", "parametrized": "parametrizations.weight.original0"}
VECTORS = {
    "hooks": ("weight_u", "weight_v"),
    "parametrized": ("parametrizations.weight.0._u", "parametrizations.weight.0._v"),
}
RAW = {"hooks": "weight_orig", "parametrized": "parametrizations.weight.original"}


def arrays(model):
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def normed(v, g, dim):
    """g * v / |v|, the length taken over all dimensions but one, or over all."""
    axes = None if dim is None else tuple(d for d in range(v.ndim) if d != dim)
    return g * v / np.sqrt((v**2).sum(axes, keepdims=dim is not None))


def places(plan, name, dim, size):
    keep = plan.kept.get(name, {}).get(dim, torch.ones(size, dtype=torch.bool))
    return keep.nonzero().flatten().numpy()


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("api", WEIGHT_NORMS)
def test_weight_norm_after_a_cut_computes_what_its_kept_entries_give(api, dim):
    wrap, v, g = WEIGHT_NORMS[api], DIRECTION[api], LENGTH[api]
    one, two = (wrap(layer, dim=dim) for layer in (nn.Linear(6, 8), nn.Linear(8, 7)))
    model = distinct(nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), nn.Linear(7, 3)))
    x, before = noise(ROW), arrays(model)
    plan = prune(model, x, 0.4, distribution="uniform", round_to=1)
    assert plan.removed == {"0": 3, "2": 3}
    first, second = (places(plan, f"{n}.{v}", 0, 8) for n in (0, 2))

    def layer(name, rows, columns):
        direction = before[f"{name}.{v}"][rows][:, columns]
        length = before[f"{name}.{g}"]
        length = length[rows] if dim == 0 else length[:, columns] if dim == 1 else length
        return normed(direction, length, dim), before[f"{name}.bias"][rows]

    y = x.numpy()
    for name, rows, columns in ((0, first, np.arange(6)), (2, second, first)):
        weight, bias = layer(name, rows, columns)
        y = np.tanh(y @ weight.T + bias)
    y = y @ before["4.weight"][:, second].T + before["4.bias"]
    np.testing.assert_allclose(model(x).detach().numpy(), y, rtol=1e-11)
    assert (model[0].out_features, model[2].in_features, model[2].out_features) == (5, 5, 4)
    assert tuple(model[0].weight.shape) == (5, 6)
    assert plan.error < 1e-12

    fresh = distinct(copy_of(api, dim))
    ChannelCut.from_state(plan.state_dict()).apply(fresh)
    assert torch.equal(fresh(x), model(x))
    plan.undo()
    after = arrays(model)
    assert all(np.array_equal(after[name], values) for name, values in before.items())
    assert tuple(model[0].weight.shape) == (8, 6)


def copy_of(api, dim):
    one, two = (WEIGHT_NORMS[api](layer, dim=dim) for layer in (nn.Linear(6, 8), nn.Linear(8, 7)))
    return nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), nn.Linear(7, 3))


@pytest.mark.parametrize("api", WEIGHT_NORMS)
@pytest.mark.parametrize("groups_of", [1, 8])
def test_weight_norm_of_convolutions_is_cut_as_plain_convolutions_with_the_same_weights(
    api, groups_of
):
    wrap = WEIGHT_NORMS[api]
    model = distinct(
        nn.Sequential(
            wrap(nn.Conv2d(3, 8, 3)),
            nn.ReLU(),
            wrap(nn.Conv2d(8, 8, 3, groups=groups_of)),
            nn.ReLU(),
            wrap(nn.ConvTranspose2d(8, 6, 2), dim=1),
            nn.ReLU(),
            nn.Conv2d(6, 2, 1),
        )
    )
    x = noise(IMAGE)
    plan = prune(model, x, 0.5, distribution="uniform", round_to=1)
    assert plan.removed == {"0": 4, "4": 3} | ({"2": 4} if groups_of == 1 else {})
    sizes = [(m.in_channels, m.out_channels, m.groups) for m in model[::2]]
    assert sizes == [(3, 4, 1), (4, 4, min(groups_of, 4)), (4, 3, 1), (3, 2, 1)]
    for layer in model[:6:2]:
        if api == "hooks":
            nn.utils.remove_weight_norm(layer)
        else:
            parametrize.remove_parametrizations(layer, "weight")
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=min(groups_of, 4)),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 2),
        nn.ReLU(),
        nn.Conv2d(3, 2, 1),
    ).double()
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(plain(x), model(x), rtol=1e-12)


@pytest.mark.parametrize("api", SPECTRAL_NORMS)
def test_spectral_norm_after_a_cut_divides_by_what_the_kept_entries_give(api):
    wrap, raw = SPECTRAL_NORMS[api], RAW[api]
    one, two = wrap(nn.Linear(6, 8)), wrap(nn.Linear(8, 7))
    model = distinct(nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), nn.Linear(7, 3)))
    x, before = noise(ROW), arrays(model)
    plan = prune(model, x, 0.4, distribution="uniform", round_to=1)
    assert plan.removed == {"0": 3, "2": 3}
    first, second = (places(plan, f"{n}.{raw}", 0, 8) for n in (0, 2))
    u, v = VECTORS[api]
    y = x.numpy()
    for name, rows, columns in ((0, first, np.arange(6)), (2, second, first)):
        weight = before[f"{name}.{raw}"][rows][:, columns]
        sigma = before[f"{name}.{u}"][rows] @ weight @ before[f"{name}.{v}"][columns]
        y = np.tanh(y @ (weight / sigma).T + before[f"{name}.bias"][rows])
    y = y @ before["4.weight"][:, second].T + before["4.bias"]
    np.testing.assert_allclose(model(x).detach().numpy(), y, rtol=1e-11)
    assert (model[0].out_features, model[2].in_features) == (5, 5)


@pytest.mark.parametrize("api", SPECTRAL_NORMS)
def test_kernels_with_spectral_norm_lose_inputs_and_outputs(api):
    wrap, raw = SPECTRAL_NORMS[api], RAW[api]
    model = nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.Tanh(), wrap(nn.Conv2d(8, 6, 3)), nn.Tanh())
    model = distinct(model.append(nn.Flatten()).append(nn.Linear(24, 3)))
    before = arrays(model)
    plan = prune(model, noise(IMAGE), 0.5, distribution="uniform", round_to=1)
    assert plan.removed == {"0": 4, "2": 3}
    rows, columns = places(plan, f"2.{raw}", 0, 6), places(plan, f"2.{raw}", 1, 8)
    weight = before[f"2.{raw}"][rows][:, columns]
    u, v = (f"2.{name}" for name in VECTORS[api])
    kept = before[v].reshape(8, 9)[columns].reshape(-1)
    sigma = before[u][rows] @ weight.reshape(3, 36) @ kept
    model(noise(IMAGE))  # hooks compute the weight in a forward pass
    np.testing.assert_allclose(model[2].weight.detach().numpy(), weight / sigma, rtol=1e-11)
    plan.undo()
    assert all(np.array_equal(values, before[name]) for name, values in arrays(model).items())


@pytest.mark.parametrize("api", SPECTRAL_NORMS)
def test_spectral_norm_is_the_largest_singular_value_again_after_training_passes(api):
    torch.manual_seed(0)
    model = nn.Sequential(SPECTRAL_NORMS[api](nn.Linear(6, 8)), nn.Linear(8, 3)).double()
    prune(model, ROW, 0.5, round_to=1)
    model.train()
    for _ in range(300):
        model(noise(ROW))
    assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(1)


@pytest.mark.parametrize("api", SPECTRAL_NORMS)
def test_looking_at_a_layer_in_training_mode_does_not_iterate_its_spectral_norm(api):
    model = nn.Sequential(SPECTRAL_NORMS[api](nn.Linear(6, 8)), nn.Linear(8, 3)).double().train()
    before = arrays(model)
    groups(model, ROW)
    plan = prune(model, ROW, 0.5, round_to=1)
    plan.undo()
    after = arrays(model)
    assert all(np.array_equal(after[name], values) for name, values in before.items())


@pytest.mark.parametrize("api", WEIGHT_NORMS)
def test_macs_of_computed_weights_are_counted_with_their_parameters(api):
    model = copy_of(api, 0).double()
    assert prune(model, ROW, 0.5, of="macs", round_to=1).removed
    macs = sum(layer.in_features * layer.out_features for layer in model[::2])
    dense = 6 * 8 + 8 * 7 + 7 * 3
    assert 0.4 * dense < macs <= 0.5 * dense


@pytest.mark.parametrize("api", WEIGHT_NORMS)
def test_layers_with_computed_weights_can_be_excluded(api):
    model = copy_of(api, 0).double()
    assert {*prune(model, ROW, 0.4, exclude=["0"], round_to=1).removed} == {"2"}


def test_bilinear_layers_lose_inputs_and_outputs():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 5)
            self.d, self.c = nn.Bilinear(8, 5, 7), nn.Linear(7, 3)

        def forward(self, x):
            return self.c(self.d(self.a(x), self.b(x)).relu())

    _, small = check(Pair(), ROW, {"a": 8, "b": 5, "d": 7})
    sizes = (small.d.in1_features, small.d.in2_features, small.d.out_features)
    assert sizes == (4, 3, 4) == (small.a.out_features, small.b.out_features, small.c.in_features)
    big = copy.deepcopy(small)
    plain = nn.Bilinear(*sizes).double()
    plain.load_state_dict(big.d.state_dict())
    x = noise(ROW)
    expected = np.einsum(
        "bi,oij,bj->bo",
        small.a(x).detach().numpy(),
        small.d.weight.detach().numpy(),
        small.b(x).detach().numpy(),
    )
    found = (plain(small.a(x), small.b(x)) - plain.bias).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
