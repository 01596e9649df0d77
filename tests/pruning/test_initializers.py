# SPDX-License-Identifier: MIT
"""Initialisers, against connections counted one by one, formulas and NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from regrow.masks.targets import select_targets
from regrow.pruning.initializers import INITIALIZERS, RegrownWeights, fans, make_initializer
from regrow.utils.errors import ConfigError, StateError

LAYERS = {
    "linear": nn.Linear(6, 4),
    "conv": nn.Conv2d(6, 4, 3),
    "conv in groups": nn.Conv2d(6, 4, (3, 2), groups=2),
    "depthwise": nn.Conv1d(6, 12, 3, groups=6),
    "transposed": nn.ConvTranspose2d(6, 4, 3),
    "transposed in groups": nn.ConvTranspose1d(6, 4, 3, groups=2),
}


def returns(layer, regrown=None, kept=None, seed=0, **more):
    """A `Return` of a layer's weight, with its values where kept."""
    (target,) = select_targets(layer).targets
    kept = torch.zeros_like(target.parameter, dtype=torch.bool) if kept is None else kept
    return RegrownWeights(
        "weight",
        target.parameter.detach() * kept,
        kept,
        ~kept if regrown is None else regrown,
        torch.Generator().manual_seed(seed),
        target.input_dim,
        target.groups,
        **more,
    )


def connections(layer):
    """For each place of the weight, the input and the output channel that it connects."""
    weight = layer.weight
    inputs, outputs = np.zeros(weight.shape, int), np.zeros(weight.shape, int)
    groups = getattr(layer, "groups", 1)
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)
    for place in np.ndindex(*weight.shape):
        one, other = place[:2]
        if transposed:
            group = one // (weight.shape[0] // groups)
            inputs[place], outputs[place] = one, group * weight.shape[1] + other
        else:
            group = one // (weight.shape[0] // groups)
            inputs[place], outputs[place] = group * weight.shape[1] + other, one
    return inputs, outputs


@pytest.mark.parametrize("name", LAYERS)
def test_connections_equal_those_measured_on_the_layer(name):
    """The counting itself, against which outputs move when an input does."""
    layer = LAYERS[name]
    inputs, outputs = connections(layer)
    size = [4] * (layer.weight.dim() - 2)
    for channel in range(6):
        x = torch.zeros(1, 6, *size)
        x[0, channel] = 1
        with torch.no_grad():
            y = layer(x) - layer(torch.zeros_like(x))
        moved = set(y[0].reshape(y.shape[1], -1).abs().sum(1).nonzero().flatten().tolist())
        assert moved == set(outputs[inputs == channel].tolist())


@pytest.mark.parametrize("name", LAYERS)
def test_fan_in_and_fan_out_count_kept_connections(name):
    inputs, outputs = connections(LAYERS[name])
    fan_in, fan_out = fans(returns(LAYERS[name]))
    assert set(np.bincount(outputs.ravel())) == {fan_in}
    assert set(np.bincount(inputs.ravel())) == {fan_out}


BIG = {
    "linear": (nn.Linear(300, 200), 300, 200),
    "conv": (nn.Conv2d(40, 60, 3), 360, 540),
    "conv in groups": (nn.Conv2d(80, 120, 3, groups=2), 360, 540),
    "transposed": (nn.ConvTranspose2d(40, 60, 3), 360, 540),
}


def assert_normal(values, std):
    sample = values.double().numpy().ravel()
    assert sample.std() == pytest.approx(std, rel=0.03)
    assert abs(sample.mean()) < 0.03 * std
    assert (np.abs(sample) > 2 * std).mean() == pytest.approx(0.0455, abs=0.01)


def assert_uniform(values, bound):
    sample = values.double().numpy().ravel()
    assert np.abs(sample).max() <= bound * (1 + 1e-6)
    assert np.abs(sample).max() > 0.99 * bound
    assert sample.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)


@pytest.mark.parametrize("name", BIG)
def test_standard_deviations_equal_their_formulas(name):
    layer, fan_in, fan_out = BIG[name]
    made = {init: INITIALIZERS[init](returns(layer)) for init in INITIALIZERS if "ing_" in init}
    assert_normal(made["kaiming_normal"], math.sqrt(2 / fan_in))
    assert_uniform(made["kaiming_uniform"], math.sqrt(6 / fan_in))
    assert_uniform(INITIALIZERS["xavier"](returns(layer)), math.sqrt(6 / (fan_in + fan_out)))
    he = INITIALIZERS["he"](returns(layer))
    if name == "linear":
        assert_uniform(he, math.sqrt(6 / fan_in))
    else:
        assert_normal(he, math.sqrt(2 / fan_out))


@pytest.mark.parametrize("name", LAYERS)
def test_sparse_he_uses_the_kept_inputs_of_each_output(name):
    """The same draw, scaled output by output with what is counted one by one."""
    layer = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(layer.weight.shape, generator=generator) < 0.3
    regrown = ~kept & (torch.rand(layer.weight.shape, generator=generator) < 0.5)
    found = INITIALIZERS["sparse_he"](returns(layer, regrown, kept))
    drawn = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)).numpy()
    _, outputs = connections(layer)
    live = np.bincount(outputs[(kept | regrown).numpy()].ravel(), minlength=outputs.max() + 1)
    expected = drawn * np.sqrt(2 / np.maximum(live, 1))[outputs]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_survivors_draws_from_kept_weights():
    layer = nn.Linear(30, 20)
    kept = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(3)) < 0.2
    found = INITIALIZERS["survivors"](returns(layer, kept=kept))
    alive = set(layer.weight[kept].tolist())
    assert set(found.flatten().tolist()) <= alive
    assert len(set(found.flatten().tolist())) > 0.8 * len(alive), "nearly all are drawn"
    with pytest.raises(StateError, match="no surviving weight to draw from"):
        INITIALIZERS["survivors"](returns(layer))


def filters(layer, tensor):
    """One row an output channel, gathered place by place."""
    _, outputs = connections(layer)
    values = tensor.detach().double().numpy()
    return np.stack([values[outputs == out] for out in range(outputs.max() + 1)])


def of_filters(layer, chosen):
    _, outputs = connections(layer)
    return torch.from_numpy(np.isin(outputs, chosen))


@pytest.mark.parametrize("name", ["linear", "conv", "transposed", "transposed in groups"])
def test_orthogonal_filters_are_orthogonal_to_kept_filters(name):
    layer = LAYERS[name]
    regrown = of_filters(layer, [1, 3])
    back = returns(layer, regrown, ~regrown)
    rows = filters(layer, INITIALIZERS["orthogonal"](back))
    old = filters(layer, layer.weight)
    np.testing.assert_array_equal(rows[[0, 2]], old[[0, 2]])
    norm = np.linalg.norm(old[[0, 2]], axis=1).mean()
    gram = rows @ rows.T
    for new in (1, 3):
        others = [i for i in range(4) if i != new]
        np.testing.assert_allclose(gram[new, others], 0, atol=1e-6)
        assert math.sqrt(gram[new, new]) == pytest.approx(norm, rel=1e-5)


def test_orthogonal_works_with_dependent_kept_filters():
    """Equal survivors span one direction: the two others are free."""
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        layer.weight[:2] = torch.tensor([1.0, 2.0, 2.0])
    regrown = of_filters(layer, [2, 3])
    rows = filters(layer, INITIALIZERS["orthogonal"](returns(layer, regrown, ~regrown)))
    np.testing.assert_allclose(rows[2:] @ rows.T, 9 * np.eye(4)[2:], atol=1e-5)


def test_impossible_orthogonal_regrowth_raises():
    layer = nn.Linear(2, 4)
    regrown = of_filters(layer, [3])
    with pytest.raises(StateError, match=r"1 filters come back, only 0 directions.*init='he'"):
        INITIALIZERS["orthogonal"](returns(layer, regrown, ~regrown))
    regrown[3, 0] = False
    with pytest.raises(StateError, match="come back only in part"):
        INITIALIZERS["orthogonal"](returns(layer, regrown, ~regrown))
    rows = filters(nn.Linear(6, 4), INITIALIZERS["orthogonal"](returns(nn.Linear(6, 4))))
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-6, err_msg="with no survivor")


def test_zero_removed_and_original_give_those_values():
    layer = nn.Linear(5, 4)
    removed, original = torch.randn(4, 5), torch.randn(4, 5)
    back = returns(layer, removed=removed, original=original)
    assert not INITIALIZERS["zero"](back).any()
    assert torch.equal(INITIALIZERS["removed"](back), removed)
    assert torch.equal(INITIALIZERS["original"](back), original)
    with pytest.raises(StateError, match="write keep_removed=True"):
        INITIALIZERS["removed"](returns(layer))
    with pytest.raises(StateError, match=r"call remember_original\(\)"):
        INITIALIZERS["original"](returns(layer))


@pytest.mark.parametrize("init", INITIALIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_draws_are_reproducible_and_have_the_shape_and_dtype(init, dtype):
    """Seeded by the generator alone; of the weight's shape and type, vectors too."""
    for layer in (nn.Linear(6, 4).to(dtype), nn.ConvTranspose2d(6, 4, 3, groups=2).to(dtype)):
        held = torch.randn(layer.weight.shape).to(dtype)
        kept = ~of_filters(layer, [1])
        made = []
        for _ in range(2):
            torch.randn(3)  # what else is drawn changes nothing
            back = returns(layer, kept=kept, removed=held, original=held)
            made.append(INITIALIZERS[init](back))
        assert torch.equal(*made)
        assert (made[0].shape, made[0].dtype) == (layer.weight.shape, dtype)


@pytest.mark.parametrize("init", [i for i in INITIALIZERS if i not in ("orthogonal", "survivors")])
def test_vectors_are_initialised(init):
    values = torch.ones(7)
    nothing = torch.zeros(7, dtype=torch.bool)
    back = RegrownWeights(
        "b", values, nothing, ~nothing, torch.Generator(), None, 1, values, values
    )
    assert INITIALIZERS[init](back).shape == (7,)


def test_initialisers_are_given_by_name_or_callable():
    assert make_initializer("xavier") is INITIALIZERS["xavier"]
    assert make_initializer(torch.zeros_like) is torch.zeros_like
    with pytest.raises(ConfigError, match="did you mean 'xavier'"):
        make_initializer("xaver")
    with pytest.raises(ConfigError, match="a name or a callable, got 3"):
        make_initializer(3)
