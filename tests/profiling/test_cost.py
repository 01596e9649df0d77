# SPDX-License-Identifier: MIT
"""Parameters, MACs, bytes and latency."""

import time

import pytest
import torch
from torch import nn

import regrow
from regrow.profiling.cost import Cost, cost
from regrow.profiling.latency import latency
from regrow.runtime.sparse_layers import SparseLinear
from regrow.utils.errors import ConfigError, StateError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    )


IMAGES = torch.zeros(7, 3, 4, 4)


def test_cost_of_a_dense_model_by_hand():
    params = (108 + 4) + (4 + 4) + (80 + 5)
    size = 4 * params + 4 * (4 + 4) + 8  # running statistics, and the number of batches
    assert cost(network(), IMAGES) == Cost(params, 4 * 108 + 80, size)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_cost_of_a_pruned_model_by_hand(sparsity):
    model = network()
    dense = cost(model, IMAGES)
    masks = regrow.prune(model, sparsity)
    found = cost(model, IMAGES, masks)
    conv, linear = (int((~masks[name]).sum()) for name in ("0.weight", "4.weight"))
    assert found.params == dense.params - conv - linear
    assert found.macs == dense.macs - 4 * conv - linear
    assert found.bytes == dense.bytes - 4 * (conv + linear) + 14 + 10


def test_half_precision_values_are_half_as_large():
    model = nn.Linear(16, 16, bias=False).bfloat16()
    masks = regrow.prune(model, 0.75)
    assert cost(model, torch.zeros(1, 16).bfloat16(), masks).bytes == 64 * 2 + 256 / 8


def test_sparse_copies_of_weights_are_no_bytes_of_the_model():
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)).eval()
    dense = cost(model, torch.zeros(1, 16)).bytes
    model[0] = SparseLinear(model[0])
    assert cost(model, torch.zeros(1, 16)).bytes == dense == 4 * (16 * 8 + 8 + 8 * 4 + 4)


def test_shared_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    keep = {"1.weight": torch.eye(4, dtype=torch.bool)}
    assert cost(model, torch.zeros(1, 4)) == Cost(16, 32, 64)
    assert cost(model, torch.zeros(1, 4), keep) == Cost(4, 8, 16 + 2)


def test_masks_that_do_not_fit_raise():
    with pytest.raises(StateError, match=r"9.weight is masked but not selected here"):
        cost(network(), IMAGES, {"9.weight": torch.ones(3, dtype=torch.bool)})


class Sleeper(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.calls += 1
        time.sleep(0.002)
        return x


def test_latency_reports_quartiles_device_and_batch():
    model = Sleeper().train()
    found = latency(model, torch.zeros(6, 2), repeats=8, warmup=3)
    assert model.calls == 11
    assert model.training
    assert 2 <= found.p25_ms <= found.median_ms <= found.p75_ms < 100
    assert (found.device, found.batch, found.repeats) == ("cpu", 6, 8)
    assert found.threads == torch.get_num_threads()


def test_latency_with_one_repeat_raises():
    with pytest.raises(ConfigError, match="repeats must be a whole number of at least 2"):
        latency(nn.Linear(2, 2), torch.zeros(1, 2), repeats=1)


def test_masked_macs_do_not_depend_on_autocast():
    net, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), torch.randn(4, 8)
    masks = regrow.prune(net, 0.9)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert cost(net, x, masks).macs == kept
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cost(net, x, masks).macs == kept
