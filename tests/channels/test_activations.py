# SPDX-License-Identifier: MIT
"""Activations against NumPy: the inputs of each layer, computed by hand."""

import numpy as np
import pytest
import torch
from cut_oracle import distinct
from torch import nn

from regrow.channels import Activations, groups, prune
from regrow.utils.errors import ConfigError, StateError

MEASURES = {"activation": np.abs, "apoz": lambda a: (a != 0).astype(float)}


def scores(model, example, batches, measure, name="0"):
    seen = Activations(measure).record(model, batches)
    [group] = [group for group in groups(model, example) if group.name == name]
    return seen(group, dict(model.named_parameters())).numpy()


def expected(channels_last, measure):
    """Mean over all rows of (rows, channels); mean activations over the group's mean."""
    means = MEASURES[measure](channels_last).mean(0)
    return means if measure == "apoz" else means / means[means > 0].mean()


@pytest.mark.parametrize("measure", MEASURES)
def test_scores_are_means_over_all_batches_after_the_nonlinearity(measure):
    model = distinct(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    batches = [torch.randn(n, 7, 3, dtype=torch.float64) for n in (4, 2)]
    rows = np.concatenate([b.numpy().reshape(-1, 3) for b in batches])
    weight, bias = (p.detach().numpy() for p in model[0].parameters())
    hidden = np.maximum(rows @ weight.T + bias, 0)
    found = scores(model, torch.zeros(2, 7, 3, dtype=torch.float64), batches, measure)
    np.testing.assert_allclose(found, expected(hidden, measure), rtol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_channels_with_several_places_have_the_mean_of_them(measure):
    model = distinct(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)))
    batch = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    weight, bias = (p.detach().numpy() for p in model[0].parameters())
    hidden = np.einsum("nchw,dc->nhwd", batch.numpy(), weight[:, :, 0, 0]) + bias
    found = scores(model, torch.zeros(2, 3, 2, 2, dtype=torch.float64), [batch], measure)
    wanted = expected(np.maximum(hidden, 0).reshape(-1, 4), measure)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


class Convolutions(nn.Module):
    """A depthwise and a transposed convolution read the channels of the first one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 4, 1)
        self.depthwise = nn.Conv1d(4, 4, 1, groups=4)
        self.up = nn.ConvTranspose1d(4, 3, 1)

    def forward(self, x):
        return self.up(self.depthwise(self.first(x).relu()))


def test_convolutions_read_channels_too():
    model = distinct(Convolutions())
    batch = torch.randn(3, 2, 6, dtype=torch.float64)
    first = model.first(batch).relu()
    read = [first, model.depthwise(first)]
    rows = [x.detach().numpy().transpose(0, 2, 1).reshape(-1, 4) for x in read]
    mean = np.mean([np.abs(r).mean(0) for r in rows], axis=0)
    found = scores(model, batch, [batch], "activation", "first")
    np.testing.assert_allclose(found, mean / mean.mean(), rtol=1e-12)


def test_layers_inside_of_attention_are_seen():
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    batch = torch.randn(3, 5, 8, dtype=torch.float64)
    means = Activations().record(attention, [(batch, batch, batch)]).means
    received = []
    attention.out_proj.forward = None  # it is called by a function
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    q, k, v = ((batch @ w.T + b) for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
    heads = [t.reshape(3, 5, 2, 4).transpose(1, 2) for t in (q, k, v)]
    received = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(-1, 8)
    np.testing.assert_allclose(
        means["out_proj.weight", 1], received.detach().abs().mean(0), rtol=1e-10
    )
    np.testing.assert_allclose(means["in_proj_weight", 1], batch.abs().mean((0, 1)), rtol=1e-10)


def test_recording_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Activations().record(model, [torch.randn(2, 3, 4, 4)])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sums_of_ranks_are_added():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    batch = torch.randn(4, 2)
    alone = Activations().record(model, [batch])
    doubled = Activations().record(model, [batch], total=lambda values: 2 * values)
    assert doubled.counts["1.weight", 1] == 2 * alone.counts["1.weight", 1]
    assert torch.allclose(doubled.means["1.weight", 1], alone.means["1.weight", 1])


def test_missing_data_raises():
    model, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(2, 2)
    with pytest.raises(StateError, match=r"call record\(model, batches\) first"):
        prune(model, x, 0.3, criterion="activation")
    with pytest.raises(ConfigError, match="no activations were recorded"):
        Activations().record(model, [])
    with pytest.raises(ConfigError, match="measure must be one of activation, apoz"):
        Activations("mean")
    seen = Activations().record(model, [torch.randn(4, 2)])
    prune(model, x, 0.3, criterion=seen, round_to=1)
    with pytest.raises(StateError, match="recorded in another shape"):
        prune(model, x, 0.3, criterion=seen, round_to=1)
