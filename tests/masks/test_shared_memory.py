# SPDX-License-Identifier: MIT
"""Parameters that share memory without being tied raise an error with their names."""

import pytest
import torch
from torch import nn

import regrow
from regrow import Pruner, StateError


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(6, 4), nn.Linear(4, 6)
        self.dec.weight.data = self.enc.weight.data.t()


def sliced(first, second):
    """Two layers whose weights are views of one tensor."""
    whole = torch.randn(8, 8)
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(8, 4))
    net[0].weight.data, net[1].weight.data = whole[first], whole[second]
    return net


def test_transposed_view_raises_with_both_names():
    with pytest.raises(StateError, match=r"enc\.weight and dec\.weight share memory"):
        regrow.prune(Autoencoder(), 0.5)
    with pytest.raises(StateError, match=r"enc\.weight and dec\.weight share memory"):
        Pruner(Autoencoder())


def test_excluding_one_of_two_shared_weights_raises_too():
    """A zero in one is a zero in the other, so the excluded one would be pruned as well."""
    with pytest.raises(StateError, match=r"enc\.weight and dec\.weight share memory"):
        regrow.prune(Autoencoder(), 0.5, exclude=["dec.*"])


def test_partly_overlapping_views_raise():
    with pytest.raises(StateError, match=r"0\.weight and 1\.weight"):
        regrow.prune(sliced(slice(0, 4), slice(3, 7)), 0.5)


def test_disjoint_views_of_one_buffer_are_pruned():
    net = sliced(slice(0, 4), slice(4, 8))
    assert regrow.prune(net, 0.5).sparsity == 0.5


def test_interleaved_columns_of_one_buffer_are_pruned():
    whole = torch.randn(4, 16)
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(8, 4))
    net[0].weight.data, net[1].weight.data = whole[:, ::2], whole[:, 1::2]
    masks = regrow.prune(net, 0.5)
    zero = sum(int((layer.weight == 0).sum()) for layer in net)
    assert zero == masks.pruned == 32


def test_expanded_weight_raises():
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].weight.data = torch.randn(4).expand(4, 4)
    with pytest.raises(StateError, match=r"0\.weight.*same memory"):
        regrow.prune(net, 0.5)


def test_tied_parameters_are_one_target():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    assert regrow.prune(net, 0.5).sparsity == 0.5
