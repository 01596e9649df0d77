# SPDX-License-Identifier: MIT
"""Sparse convolutions with one kernel position against torch's dense ones."""

import pytest
import torch
from torch import nn

from regrow.runtime.sparse_conv import SparsePointwiseConv, is_pointwise

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
