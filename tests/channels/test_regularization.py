# SPDX-License-Identifier: MIT
"""Penalties on groups against formulas, on a convolution read at four places a channel."""

import numpy as np
import pytest
import torch
from cut_oracle import distinct
from torch import nn

from regrow.channels import groups, slimming
from regrow.channels.regularization import GroupPenalty, sparse_group_factors
from regrow.utils.errors import ConfigError


@pytest.fixture
def case():
    """First weight (5, 3, 3, 3), norm of 5, last weight (2, 20): four places a channel."""
    model = distinct(
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 2))
    )
    found = groups(model, torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    return [found[0]], dict(model.named_parameters())


def squares(tensors):
    """Sum of squares of everything that has a part of a channel, by plain NumPy."""
    held = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    total = (held["0.weight"].reshape(5, -1) ** 2).sum(1)
    total = total + (held["3.weight"].reshape(2, 5, 4) ** 2).sum((0, 2))
    return total + sum(held[name] ** 2 for name in ("0.bias", "1.weight", "1.bias"))


def test_slimming_penalty_sums_absolute_scales(case):
    _, tensors = case
    expected = np.abs(tensors["1.weight"].detach().numpy()).sum()
    assert slimming(tensors).item() == pytest.approx(expected)
    with pytest.raises(ConfigError, match="no norm with a scale"):
        slimming({"0.weight": torch.ones(2, 2)})


def test_norms_of_channels_count_all_members(case):
    found, tensors = case
    penalty = GroupPenalty(found, tensors)
    np.testing.assert_allclose(penalty.squares("0"), squares(tensors), rtol=1e-6)


def test_factors_go_from_one_for_the_largest_to_sixteen_for_the_smallest():
    norms = np.array([0.5, 3.0, 1.25, 2.0])
    expected = 2 ** (4 * (norms.max() - norms) / (norms.max() - norms.min()))
    np.testing.assert_allclose(sparse_group_factors(torch.tensor(norms)), expected)
    masked = sparse_group_factors(torch.tensor([0.0, *norms]))
    np.testing.assert_allclose(masked[1:], expected)
    assert sparse_group_factors(torch.tensor([2.0, 2.0])).tolist() == [1, 1]


def test_gradient_is_that_of_the_weighted_sum_of_squares(case):
    found, tensors = case
    factors = torch.tensor([0.5, 0.0, 2.0, 1.0, 4.0], dtype=torch.float64)
    for tensor in tensors.values():
        tensor.grad = torch.ones_like(tensor)
    tensors["1.bias"].grad = None
    GroupPenalty(found, tensors).add_gradients({"0": factors})
    f = factors.numpy()
    held = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    expected = {
        "0.weight": f[:, None, None, None] * held["0.weight"],
        "0.bias": f * held["0.bias"],
        "1.weight": f * held["1.weight"],
        "3.weight": np.repeat(f, 4) * held["3.weight"],
        "3.bias": 0 * held["3.bias"],
    }
    for name, gradient in expected.items():
        np.testing.assert_allclose(tensors[name].grad, 1 + gradient, rtol=1e-12)
    assert tensors["1.bias"].grad is None


def test_parameters_of_other_optimizers_are_left_out(case):
    found, tensors = case
    for tensor in tensors.values():
        tensor.grad = torch.zeros_like(tensor)
    GroupPenalty(found, tensors).add_gradients({"0": torch.ones(5)}, {id(tensors["0.bias"])})
    changed = [name for name, tensor in tensors.items() if bool(tensor.grad.any())]
    assert changed == ["0.bias"]
