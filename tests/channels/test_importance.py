# SPDX-License-Identifier: MIT
"""Scores against NumPy, on a convolution whose channels come four times in a linear layer."""

import numpy as np
import pytest
import torch
from cut_oracle import distinct
from torch import nn

from regrow.channels import MeanScores, groups
from regrow.channels.importance import CHANNEL_CRITERIA, channel_scores, get_channel_criterion
from regrow.utils.errors import ConfigError, StateError

X = torch.zeros(2, 3, 4, 4, dtype=torch.float64)


@pytest.fixture(scope="module")
def case():
    """First weight (5, 3, 3, 3), norm of 5, last weight (2, 20): four places a channel."""
    model = distinct(
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 2))
    )
    model(torch.randn(3, 3, 4, 4, dtype=torch.float64)).square().sum().backward()
    return groups(model, X)[0], dict(model.named_parameters())


def arrays(tensors, of):
    found = {name: of(tensor).detach().numpy() for name, tensor in tensors.items()}
    return found["0.weight"].reshape(5, -1), found["3.weight"].reshape(2, 5, 4)


def over_mean(scores):
    return scores / scores.mean()


def test_l1_sums_absolute_weights(case):
    group, tensors = case
    rows, columns = arrays(tensors, lambda t: t)
    expected = over_mean(np.abs(rows).sum(1) + np.abs(columns).sum((0, 2)))
    np.testing.assert_allclose(
        channel_scores(group, tensors, CHANNEL_CRITERIA["l1"]), expected, rtol=1e-12
    )


def test_l2_is_the_euclidean_norm(case):
    group, tensors = case
    rows, columns = arrays(tensors, lambda t: t)
    expected = over_mean(np.sqrt((rows**2).sum(1) + (columns**2).sum((0, 2))))
    np.testing.assert_allclose(
        channel_scores(group, tensors, CHANNEL_CRITERIA["l2"]), expected, rtol=1e-12
    )


def test_bn_reads_norm_scales(case):
    group, tensors = case
    expected = np.abs(tensors["1.weight"].detach().numpy())
    np.testing.assert_allclose(
        channel_scores(group, tensors, CHANNEL_CRITERIA["bn"]), expected, rtol=1e-12
    )
    plain = groups(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(2, 3))[0]
    with pytest.raises(ConfigError, match="criterion 'bn' ranks by the scale of norms, and 0 has"):
        channel_scores(plain, {}, CHANNEL_CRITERIA["bn"])


def test_taylor_is_the_first_order_change_of_the_loss(case):
    group, tensors = case
    rows, columns = arrays(tensors, lambda t: t * t.grad)
    total = rows.sum(1) + columns.sum((0, 2))
    for name in ("0.bias", "1.weight", "1.bias"):
        total += (tensors[name] * tensors[name].grad).detach().numpy()
    np.testing.assert_allclose(
        channel_scores(group, tensors, CHANNEL_CRITERIA["taylor"]), total**2, rtol=1e-9
    )
    bare = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    with pytest.raises(StateError, match=r"0\.weight has no gradient"):
        channel_scores(group, bare, CHANNEL_CRITERIA["taylor"])


def fisher_terms(tensors):
    """Half of (g w)^2, summed over all members of each channel."""
    rows, columns = arrays(tensors, lambda t: (t * t.grad) ** 2 / 2)
    total = rows.sum(1) + columns.sum((0, 2))
    for name in ("0.bias", "1.weight", "1.bias"):
        total += ((tensors[name] * tensors[name].grad) ** 2 / 2).detach().numpy()
    return total


def test_fisher_is_the_second_order_change_with_squared_gradients(case):
    group, tensors = case
    found = channel_scores(group, tensors, get_channel_criterion("fisher", 0))
    np.testing.assert_allclose(found, fisher_terms(tensors), rtol=1e-9)
    with pytest.raises(ConfigError, match="write 'fisher'"):
        get_channel_criterion("hessian", 0)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_mean_scores_are_means_over_steps(decay):
    model = distinct(
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 2))
    )
    group, tensors = groups(model, X)[0], dict(model.named_parameters())
    mean, terms = MeanScores("fisher", decay), []
    with pytest.raises(StateError, match="no gradients of 0 were seen"):
        mean(group, tensors)
    for seed in range(3):
        model.zero_grad()
        x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
        model(x).square().sum().backward()
        mean.update([group], tensors)
        terms.append(fisher_terms(tensors))
    weights = [decay**2, decay, 1]
    expected = np.average(terms, axis=0, weights=weights)
    np.testing.assert_allclose(channel_scores(group, tensors, mean), expected, rtol=1e-9)
    again = MeanScores("fisher", decay)
    again.load_state_dict(mean.state_dict())
    assert torch.equal(again(group, tensors), mean(group, tensors))


def test_fpgm_sums_distances_to_other_filters(case):
    group, tensors = case
    rows, _ = arrays(tensors, lambda t: t)
    expected = over_mean(np.linalg.norm(rows[:, None] - rows[None], axis=-1).sum(1))
    np.testing.assert_allclose(
        channel_scores(group, tensors, CHANNEL_CRITERIA["fpgm"]), expected, rtol=1e-6
    )


def test_filters_of_a_transposed_convolution_are_its_weight_columns():
    model = distinct(nn.Sequential(nn.ConvTranspose1d(3, 5, 2), nn.Conv1d(5, 2, 1)))
    group = groups(model, torch.zeros(2, 3, 6, dtype=torch.float64))[0]
    rows = model[0].weight.detach().numpy().transpose(1, 0, 2).reshape(5, -1)
    expected = over_mean(np.linalg.norm(rows[:, None] - rows[None], axis=-1).sum(1))
    found = channel_scores(group, dict(model.named_parameters()), CHANNEL_CRITERIA["fpgm"])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_random_scores_depend_on_seed_and_group(case):
    group, tensors = case
    one, again, other = (
        channel_scores(group, tensors, get_channel_criterion("random", s)) for s in "112"
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_custom_criteria_are_checked(case):
    group, tensors = case
    with pytest.raises(ConfigError, match=r"the criterion gave \(3,\) for the 5 channels of 0"):
        channel_scores(group, tensors, lambda group, tensors: torch.ones(3))
    with pytest.raises(StateError, match="scores of 0 are not finite"):
        channel_scores(group, tensors, lambda group, tensors: torch.full((5,), torch.nan))
    with pytest.raises(ConfigError, match="taylor"):
        get_channel_criterion("tailor", 0)
