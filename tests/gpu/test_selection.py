# SPDX-License-Identifier: MIT
"""The device selects the weights that the CPU selects, and gives removed values back."""

import copy

import pytest
import torch
from torch import nn

import regrow

CASES = {
    "global": {},
    "uniform": {"distribution": "uniform"},
    "erk": {"distribution": "erk"},
    "lamp": {"distribution": "lamp"},
    "random": {"criterion": "random"},
    "2:4": {"granularity": "2:4", "exclude": ["0"]},
    "block:4x4": {"granularity": "block:4x4", "exclude": ["0"]},
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def network(dtype=torch.float32):
    """More weights than are sorted at once, with ties; sums of their sizes are exact."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(72, 256), nn.Linear(256, 16))
    for parameter in net.parameters():
        parameter.data = torch.randint(-64, 65, parameter.shape).to(dtype) / 32
    return net.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_masks_equal_those_of_the_cpu(device, case, dtype):
    here = network(dtype)
    there = copy.deepcopy(here).to(device)
    masks = regrow.prune(here, 0.5, **CASES[case])
    others = regrow.prune(there, 0.5, **CASES[case])
    for name, mask in masks.items():
        assert others[name].device.type == device.type
        assert torch.equal(mask, others[name].cpu()), name
        assert torch.equal(there.get_parameter(name).detach().cpu(), here.get_parameter(name))


@pytest.mark.parametrize("dtype", DTYPES)
def test_un_prune_gives_the_dense_network_bit_exactly(device, dtype):
    net = network(dtype).to(device)
    before = copy.deepcopy(net.state_dict())
    pruner = regrow.Pruner(net, keep_removed=True)
    for sparsity in (0.5, 0.9):
        pruner.prune_to(sparsity)
    pruner.regrow(fraction=0.5, init="removed")
    saved = pruner.state_dict()
    pruner.unprune()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    other = network(dtype).to(device)
    again = regrow.Pruner(other, keep_removed=True)
    again.load_state_dict(saved)
    assert again.sparsity == pytest.approx(0.45, abs=1e-4)
    assert regrow.sparsity(other) >= again.sparsity
    again.unprune()
    assert again.sparsity == 0
