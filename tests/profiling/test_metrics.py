# SPDX-License-Identifier: MIT
"""Metrics against NumPy, alone and in two processes."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import regrow
from regrow.masks.masks import Masks
from regrow.profiling.cost import cost
from regrow.profiling.macs import positions
from regrow.profiling.metrics import EffectiveMACs, MaskOverlap, Sparsity
from regrow.utils.errors import ConfigError, StateError

SHAPES = {"a": (3, 4), "b": (7,), "c": (2, 2, 2)}


def masks(seed, density=0.4):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(shape, generator=generator) < density for name, shape in SHAPES.items()
    }


def flat(given):
    return np.concatenate([mask.numpy().reshape(-1) for mask in given.values()])


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4))
def test_sparsity_is_the_pruned_fraction(seeds):
    metric = Sparsity()
    for seed in seeds:
        metric.update(Masks(masks(seed)))
    seen = np.concatenate([flat(masks(seed)) for seed in seeds])
    assert float(metric.compute()) == pytest.approx((~seen).mean())


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4))
def test_effective_macs_by_hand(seeds):
    used = {"a": 4.0, "b": 2.5, "other": 9.0}
    metric = EffectiveMACs(used, rest=10)
    for seed in seeds:
        metric.update(masks(seed))
    wanted = [
        round(10 + sum(used.get(name, 0) * mask.numpy().sum() for name, mask in masks(s).items()))
        for s in seeds
    ]
    assert float(metric.compute()) == pytest.approx(np.mean(wanted))


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=4))
def test_overlap_is_intersection_over_union(pairs):
    metric = MaskOverlap()
    for one, other in pairs:
        metric.update(masks(one), masks(other))
    a = np.concatenate([flat(masks(one)) for one, _ in pairs])
    b = np.concatenate([flat(masks(other)) for _, other in pairs])
    assert float(metric.compute()) == pytest.approx((a & b).sum() / (a | b).sum())


def test_overlap_of_equal_and_of_disjoint_masks():
    metric = MaskOverlap()
    assert float(metric(masks(0), masks(0))) == 1
    inverse = {name: ~mask for name, mask in masks(0).items()}
    assert float(metric(masks(0), inverse)) == 0
    nothing = masks(0, density=0)
    assert float(metric(nothing, nothing)) == 1


def test_effective_macs_agree_with_the_cost_of_a_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    images = torch.zeros(2, 3, 4, 4)
    found = regrow.prune(model, 0.8)
    metric = EffectiveMACs(positions(model, images))
    metric.update(found)
    assert int(metric.compute()) == cost(model, images, found).macs


@pytest.mark.parametrize(
    ("metric", "arguments"),
    [
        (Sparsity(), [(masks(0),), (masks(1),)]),
        (EffectiveMACs({"a": 2.0}), [(masks(0),), (masks(1),)]),
        (MaskOverlap(), [(masks(0), masks(2)), (masks(1), masks(3))]),
    ],
)
def test_counts_of_processes_add_up(metric, arguments):
    """Two processes with one update each, their states summed, are one with both."""
    parts = [copy.deepcopy(metric) for _ in arguments]
    for part, given_ in zip(parts, arguments, strict=True):
        part.update(*given_)
        metric.update(*given_)
    for name, reduction in metric._reductions.items():
        total = reduction(torch.stack([getattr(part, name) for part in parts]))
        assert torch.equal(total, getattr(metric, name))
        setattr(parts[0], name, total)
    parts[0]._computed = None
    assert torch.equal(parts[0].compute(), metric.compute())
    metric.reset()
    metric.update(*arguments[0])
    assert torch.equal(pickle.loads(pickle.dumps(metric)).compute(), metric.compute())


def test_large_counts_stay_exact():
    metric = Sparsity()
    metric.part += 2**40 + 1
    metric.update({"a": torch.tensor([False])})
    assert int(metric.part) == 2**40 + 2


def test_masks_that_do_not_fit_raise():
    with pytest.raises(ConfigError, match="the mask of a must be a bool tensor"):
        Sparsity().update({"a": torch.ones(2)})
    with pytest.raises(StateError, match="c has no mask"):
        MaskOverlap().update({"a": masks(0)["a"], "b": masks(0)["b"]}, masks(0))
    with pytest.raises(StateError, match=r"positions= has none of a, b, c, only fc.weight"):
        EffectiveMACs({"fc.weight": 1.0}).update(masks(0))
