# SPDX-License-Identifier: MIT
"""Each kind of layer equals a matrix product of its unfolded inputs."""

import pytest
import torch
from torch import nn

from regrow.calibration.layer_rows import LayerRows

X1, X2, X3 = (torch.zeros(2, 4, *[7, 6, 5][:n]) for n in (1, 2, 3))
LAYERS = {
    "linear": (nn.Linear(6, 3), torch.zeros(2, 5, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3), X1),
    "conv2d strided, padded": (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 1)), X2),
    "conv2d dilated": (nn.Conv2d(4, 6, 2, dilation=(2, 1)), X2),
    "conv2d same": (nn.Conv2d(4, 6, 4, padding="same"), X2),
    "conv2d reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), X2),
    "conv2d circular": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"), X2),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), X2),
    "conv2d depthwise": (nn.Conv2d(4, 4, 3, groups=4), X2),
    "conv3d": (nn.Conv3d(4, 2, 2, padding=1), X3),
    "transposed 1d": (nn.ConvTranspose1d(4, 3, 3, 2, 1, 1), X1),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), groups=2), X2),
    "transposed, dilated": (nn.ConvTranspose2d(4, 6, 3, dilation=2, padding=3), X2),
    "transposed 3d": (nn.ConvTranspose3d(4, 2, 2, 2), X3),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_layer_is_a_matrix_product_of_its_rows(kind):
    torch.manual_seed(0)
    module, like = LAYERS[kind]
    module, x = module.double(), torch.randn(like.shape, dtype=torch.float64)
    layer = LayerRows("weight", module)
    y = module(x)
    rows = layer.outputs(layer.inputs((x,), {}))
    if isinstance(module, nn.Linear):
        expected = y.reshape(1, -1, 3)
    else:
        grouped = y.reshape(2, layer.groups, y.shape[1] // layer.groups, -1)
        expected = grouped.permute(1, 0, 3, 2).reshape(rows.shape)
    assert torch.allclose(rows, expected, atol=1e-12)
    assert torch.equal(layer.to_weight(layer.matrix), module.weight)


def test_one_example_without_a_batch_dimension():
    layer = LayerRows("weight", nn.Conv2d(4, 6, 3))
    x = torch.randn(4, 7, 6)
    assert torch.equal(layer.inputs((x,), {}), layer.inputs((), {"input": x[None]}))


def test_some_outputs_are_those_of_all():
    layer = LayerRows("weight", nn.Conv2d(4, 6, 3, groups=2))
    rows = layer.inputs((torch.randn(2, 4, 5, 5),), {})
    kept = torch.tensor([True, False, True, False, True, True])
    whole, some = (torch.cat([*layer.outputs(rows, k)], 1) for k in (None, kept))
    assert torch.equal(some, whole[:, kept])
