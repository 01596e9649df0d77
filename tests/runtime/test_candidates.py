# SPDX-License-Identifier: MIT
"""Which forms of a layer are tried."""

import torch
from torch import nn

import regrow
from regrow.runtime.candidates import find_candidates, find_layers, is_two_four


def names(layer):
    return [name for name, _ in find_candidates(layer)]


def test_dense_layers_have_no_sparse_form():
    assert names(nn.Linear(32, 32)) == []
    assert names(nn.Conv2d(32, 32, 1)) == ["channels last"]


def test_blocks_are_tried_where_half_of_them_are_zero():
    layer = nn.Linear(32, 48)
    with torch.no_grad():
        layer.weight[:, 8:] = 0  # each block of 16 x 16 in the left half has weights
    assert names(layer) == ["CSR", "BSR 4x4", "BSR 8x8", "BSR 16x16"]
    with torch.no_grad():
        layer.weight[::4, ::4] = 1
    assert names(layer) == ["CSR"]
    odd = nn.Linear(30, 47)
    nn.init.zeros_(odd.weight)
    assert names(odd) == ["CSR"]


def test_two_of_each_four_weights_are_tried_in_that_format_on_cuda_alone():
    layer = nn.Linear(64, 64)
    regrow.prune(nn.Sequential(layer), 0.5, granularity="2:4")
    assert names(layer) == ["CSR"]
    assert is_two_four(layer.weight.detach() != 0)
    assert not is_two_four(nn.Linear(64, 64).weight.detach() != 0)
    assert not is_two_four(torch.zeros(4, 6))


def test_only_plain_layers_without_hooks_are_found():
    class Scaled(nn.Linear):
        pass

    net = nn.Sequential(
        nn.Linear(4, 4),
        Scaled(4, 4),
        nn.utils.weight_norm(nn.Linear(4, 4)),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.MultiheadAttention(4, 1),
        nn.Conv2d(4, 4, 3),
    )
    assert [*find_layers(net)] == ["0", "5"]


def test_channels_last_has_a_copy_with_the_same_values():
    layer = nn.Conv2d(3, 8, 3)
    ((_, make),) = find_candidates(layer)
    other = make()
    assert other.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(other.weight, layer.weight)
    assert layer.weight.is_contiguous()
