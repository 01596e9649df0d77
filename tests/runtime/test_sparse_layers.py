# SPDX-License-Identifier: MIT
"""Sparse Linear layers against NumPy, and sparse convolutions against torch's dense ones."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from regrow.runtime.sparse_layers import SparseLinear, SparsePointwiseConv, is_pointwise


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_those_of_numpy(shape, bias, block):
    torch.manual_seed(0)
    dense = nn.Linear(8, 12, bias=bias)
    with torch.no_grad():
        dense.weight[:4] = 0
        dense.weight[:, 4:] *= torch.rand(12, 4) > 0.7
    x = torch.randn(shape)
    weight = dense.weight.detach().numpy().astype(np.float64)
    expected = x.numpy() @ weight.T + (dense.bias.detach().numpy() if bias else 0)
    layer = SparseLinear(dense, block)
    with torch.inference_mode():
        outputs = layer(x)
        assert outputs.is_contiguous()
        np.testing.assert_allclose(outputs.numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(copy.deepcopy(layer)(x).numpy(), expected, atol=1e-5)
        doubled = layer.double()(x.double())
        np.testing.assert_allclose(doubled.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("make", [nn.Linear, partial(nn.Conv2d, kernel_size=1)])
def test_two_four_matrices_are_multiplied_in_the_same_way(make, monkeypatch):
    """The format exists on CUDA devices alone: a dense copy takes its place here."""
    monkeypatch.setattr("regrow.runtime.sparse_layers.to_sparse_semi_structured", torch.clone)
    dense = make(8, 12)
    x = torch.randn(5, 8) if isinstance(dense, nn.Linear) else torch.randn(2, 8, 3, 3)
    layer = (SparseLinear if isinstance(dense, nn.Linear) else SparsePointwiseConv)(dense, None)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), dense(x))


def test_the_two_four_format_of_a_cpu_raises():
    with pytest.raises(RuntimeError, match="CUDA"):
        SparseLinear(nn.Linear(64, 64), None)


CASES = [
    (nn.Conv1d(8, 12, 1), (2, 8, 9)),
    (nn.Conv2d(8, 12, 1, stride=2), (3, 8, 7, 6)),
    (nn.Conv2d(8, 12, 1, bias=False), (8, 7, 6)),
    (nn.Conv3d(8, 12, 1, stride=(1, 2, 3)), (2, 8, 3, 4, 5)),
]


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize(("dense", "shape"), CASES, ids=lambda one: type(one).__name__)
def test_outputs_are_those_of_the_dense_convolution(dense, shape, block):
    with torch.inference_mode():
        x = torch.randn(shape)
        outputs = SparsePointwiseConv(dense, block)(x)
        assert torch.allclose(outputs, dense(x), atol=1e-5)
        assert outputs.is_contiguous()


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_batches_without_examples_give_the_shapes_of_the_dense_layer(bias, block):
    linear = nn.Linear(8, 12, bias=bias)
    convs = [(dense, (0, *shape[1:])) for dense, shape in CASES if len(shape) == dense.weight.ndim]
    assert len(convs) == 3
    layers = [(linear, shape) for shape in ((0, 8), (2, 0, 8))]
    for dense, shape in (*layers, *convs):
        sparse = (SparseLinear if dense is linear else SparsePointwiseConv)(dense, block)
        with torch.inference_mode():
            x = torch.zeros(shape)
            assert sparse(x).shape == dense(x).shape


def test_only_convolutions_that_are_matrix_products_are_pointwise():
    pointwise = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, padding="same"), nn.Conv1d(4, 4, 1)]
    others = [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, (1, 3)),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.ConvTranspose2d(4, 4, 1),
        nn.Linear(4, 4),
    ]
    assert all(map(is_pointwise, pointwise))
    assert not any(map(is_pointwise, others))
