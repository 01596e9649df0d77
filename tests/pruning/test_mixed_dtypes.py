# SPDX-License-Identifier: MIT
"""Layers of several dtypes in one model: one exact ranking, exact removed values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regrow.pruning.config import PruningConfig
from regrow.pruning.drop_and_grow import drop_and_grow
from regrow.pruning.pruner import Pruner
from regrow.pruning.removed_weights import RemovedWeights
from regrow.utils.errors import StateError

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PAIRS = [(a, b) for a in TYPES for b in TYPES if a != b]


def model(*types, seed=0):
    torch.manual_seed(seed)
    return nn.ModuleList(nn.Linear(7, 5, bias=False).to(dtype) for dtype in types)


def lowest(tensors, count):
    """NumPy's masks: values as exact doubles, ties by layer and place, one left in each layer."""
    parts = [t.detach().double().abs().numpy().ravel() for t in tensors]
    for part in parts:
        part[np.argmax(part)] = np.inf
    kept = np.ones(sum(map(len, parts)), bool)
    kept[np.argsort(np.concatenate(parts), kind="stable")[:count]] = False
    parts = np.split(kept, np.cumsum([t.numel() for t in tensors])[:-1])
    return [torch.from_numpy(p.reshape(t.shape)) for p, t in zip(parts, tensors, strict=True)]


def is_zero(weight, mask):
    gone = weight.detach()[~mask]
    return not gone.any() and not gone.signbit().any()


@pytest.mark.parametrize("types", [*PAIRS, TYPES], ids=str)
@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_weights_of_all_dtypes_are_ranked_together(types, criterion):
    net = model(*types)
    weights = [layer.weight for layer in net]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    expected = lowest(weights, round(0.7 * 35 * len(types)))
    pruner = Pruner(net, PruningConfig(criterion))
    pruner.prune_to(0.7)
    for weight, mask, right in zip(weights, pruner.masks.values(), expected, strict=True):
        assert torch.equal(mask, right)
        assert is_zero(weight, mask)


@given(st.integers(0, 10**6), st.floats(0.05, 0.6), st.permutations(TYPES))
def test_equal_values_are_ties_across_dtypes(seed, sparsity, types):
    """Halves and quarters are the same number in all of them; ties go by layer and place."""
    net = model(*types)
    generator = torch.Generator().manual_seed(seed)
    for layer in net:
        values = torch.randint(-6, 7, (5, 7), generator=generator) / 4
        layer.weight.data.copy_(values)
    weights = [layer.weight for layer in net]
    count = round(sparsity * 140)
    expected = lowest(weights, count)
    pruner = Pruner(net)
    pruner.prune_to(sparsity)
    assert pruner.pruned == count
    for mask, right in zip(pruner.masks.values(), expected, strict=True):
        assert torch.equal(mask, right)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_unprune_is_exact_in_every_dtype(dtype):
    """-0.0, subnormals, the largest number, infinity and a NaN with its payload."""
    info = torch.finfo(dtype)
    weight = torch.randn(64).to(dtype)
    weight[:6] = torch.tensor(
        [-0.0, info.smallest_normal / 2, info.max, -float("inf"), info.eps, info.min], dtype=dtype
    )
    wide = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    weight.view(wide)[6] = torch.tensor(float("nan"), dtype=dtype).view(wide) + 3
    before, mask, vault = weight.view(wide).clone(), torch.rand(64) < 0.3, RemovedWeights()
    mask[:7] = False
    vault.store("w", weight, mask)
    assert vault.values["w"].dtype == dtype
    weight[~mask] = 0
    other = RemovedWeights()
    other.load_state_dict(vault.state_dict(), {"w": mask})
    other.restore("w", weight, mask)
    assert torch.equal(weight.view(wide), before)


def test_saved_pruner_restores_every_dtype_exactly(tmp_path):
    net = model(*TYPES)
    before = [layer.weight.detach().clone() for layer in net]
    pruner = Pruner(net, keep_removed=True)
    pruner.prune_to(0.8)
    torch.save({"model": net.state_dict(), "pruner": pruner.state_dict()}, tmp_path / "p.pt")
    saved = torch.load(tmp_path / "p.pt", weights_only=True)
    fresh = model(*TYPES, seed=1)
    fresh.load_state_dict(saved["model"])
    other = Pruner(fresh, keep_removed=True)
    other.load_state_dict(saved["pruner"])
    assert all(is_zero(fresh[i].weight, m) for i, m in enumerate(other.masks.values()))
    other.unprune()
    assert all(torch.equal(layer.weight, b) for layer, b in zip(fresh, before, strict=True))
    assert [layer.weight.dtype for layer in fresh] == [*TYPES]


@pytest.mark.parametrize("init", ["zero", "he", "removed", "survivors"])
def test_regrowth_keeps_the_dtypes(init):
    net = model(*TYPES)
    pruner = Pruner(net, keep_removed=True)
    pruner.prune_to(0.8)
    pruner.regrow(count=20, by="removed", init=init)
    assert pruner.pruned == 112 - 20
    for layer in net:
        layer.weight.grad = torch.randn(5, 7).to(layer.weight.dtype)
    drop_and_grow(pruner, 0.3, grow="gradient")
    assert pruner.pruned == 112 - 20
    assert [layer.weight.dtype for layer in net] == [*TYPES]
    assert all(is_zero(net[i].weight, mask) for i, mask in enumerate(pruner.masks.values()))


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu], ids=str
)
def test_float8_parameters_raise(dtype):
    """In float8_e8m0fnu there is no zero at all; none of them is trained."""
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4).to(dtype), requires_grad=False)
    with pytest.raises(StateError, match=f"weight has dtype {dtype}: .*prune before quantising"):
        Pruner(layer)
    Pruner(nn.Sequential(layer, nn.Linear(4, 4)), PruningConfig(exclude=["0"])).prune_to(0.5)
