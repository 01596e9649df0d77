# SPDX-License-Identifier: MIT
"""2:4 sparsity: trained, then run by torch's semi-structured kernels where they are faster."""

import copy

import pytest
import torch
from device_fits import Callable, on
from tiny_fits import ADAM, fit
from torch import nn

import regrow
from regrow import MagnitudePruning
from regrow.runtime.sparse_layers import SparseLinear, SparsePointwiseConv

HALF = [torch.float16, torch.bfloat16]


def mlp(device, dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))
    return net.to(device, dtype).eval()


def test_a_fit_ends_with_two_of_each_four_weights(device):
    module, pruning = Callable(ADAM), MagnitudePruning(
        0.5, granularity="2:4", schedule="linear", begin=0, end=0.8, every="2it", include=["body.2"]
    )  # fmt: skip
    fit(module, pruning, **on(device))
    kept = (module.body[2].weight.detach() != 0).unflatten(1, (-1, 4)).sum(2)
    assert (kept == 2).all()


@pytest.mark.parametrize("dtype", HALF)
def test_layers_in_the_format_compute_what_dense_ones_do(cuda, dtype):
    for dense, shape, make in (
        (nn.Linear(256, 128), (40, 256), SparseLinear),
        (nn.Linear(256, 128, bias=False), (2, 7, 256), SparseLinear),
        (nn.Conv2d(256, 128, 1), (2, 256, 7, 7), SparsePointwiseConv),
    ):
        dense = dense.to(cuda, dtype)
        regrow.prune(nn.Sequential(dense), 0.5, granularity="2:4")
        x = torch.randn(shape, device=cuda, dtype=dtype)
        with torch.inference_mode():
            expected, found = dense(x), make(dense, None)(x)
            again = copy.deepcopy(make(dense, None))(x)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(again, found)


@pytest.mark.parametrize("dtype", HALF)
def test_accelerate_measures_the_format_and_keeps_it_only_where_it_is_faster(cuda, dtype):
    net, x = mlp(cuda, dtype), torch.randn(4096, 512, device=cuda, dtype=dtype)
    regrow.prune(net, 0.5, granularity="2:4")
    with torch.inference_mode():
        expected = net(x)
    result = regrow.accelerate(net, x, tolerance=1e-2, repeats=20)
    with torch.inference_mode():
        torch.testing.assert_close(net(x), expected, rtol=2e-2, atol=2e-2)
    for choice in result.layers:
        assert "2:4" in choice.reason
        assert "fails" not in choice.reason.split("2:4")[1].split(";")[0], choice.reason
        assert (choice.form == "dense") == (choice.speedup is None)
    result.undo()
    assert [type(layer) for layer in net] == [nn.Linear, nn.ReLU, nn.Linear]
    with torch.inference_mode():
        assert torch.equal(net(x), expected)


def test_accelerate_changes_nothing_on_a_dense_network(device):
    net, x = mlp(device), torch.randn(8, 512, device=device)
    result = regrow.accelerate(net, x, repeats=3)
    assert not result.gains
    assert "2:4" not in "".join(choice.reason for choice in result.layers)
