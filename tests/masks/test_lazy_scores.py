# SPDX-License-Identifier: MIT
"""Lazily computed scores give the masks of stored scores, for any chunk size."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regrow.masks.topk
from regrow.distributed.sharded_random import CHUNK, RandomStream
from regrow.masks.granularity import make_granularity, mask_from_units, units_of
from regrow.masks.lazy_scores import (
    LazyScores,
    elementwise_scores,
    materialized_scores,
    random_scores,
)
from regrow.masks.topk import global_topk_masks
from regrow.masks.topk_single import topk_mask

SHAPES = [(7, 5), (6, 4, 3, 3), (11,)]


def tensors(seed, channels_last=False):
    torch.manual_seed(seed)
    made = [torch.randn(shape) for shape in SHAPES]
    if channels_last:
        made[1] = made[1].to(memory_format=torch.channels_last)
    return made


def seeded(seed):
    return lambda: torch.Generator().manual_seed(seed)


def same(found, wanted):
    return all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@pytest.fixture(params=[7, 1 << 18])
def chunk(request, monkeypatch):
    """Parts that cut layers, rows and units apart; and such as hold everything."""
    monkeypatch.setattr(regrow.masks.topk, "CHUNK", request.param)
    monkeypatch.setattr("regrow.masks.granularity.CHUNK", request.param)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pruned", [0, 1, 130, 261])
def test_masks_of_products_equal_numpys(chunk, pruned, last):
    weights, grads = tensors(0, last), tensors(1)
    scores = [
        elementwise_scores(lambda w, g: (w * g).abs(), w, g)
        for w, g in zip(weights, grads, strict=True)
    ]
    masks = global_topk_masks(scores, pruned, min_keep=0)
    flat = np.concatenate(
        [np.abs(w.numpy() * g.numpy()).ravel() for w, g in zip(weights, grads, strict=True)]
    )
    wanted = np.ones(len(flat), bool)
    wanted[np.argsort(flat, kind="stable")[:pruned]] = False
    assert np.array_equal(np.concatenate([mask.numpy().ravel() for mask in masks]), wanted)
    assert [mask.stride() for mask in masks] == [weight.stride() for weight in weights]


def test_chunked_random_scores_equal_one_draw(chunk):
    lots = [random_scores(weight, None, seeded(3 + i)) for i, weight in enumerate(tensors(0, True))]
    drawn = [torch.rand(s, generator=seeded(3 + i)()) for i, s in enumerate(SHAPES)]
    assert same(global_topk_masks(lots, 100), global_topk_masks(drawn, 100))


@given(st.lists(st.integers(0, 3 * CHUNK), min_size=1, max_size=4))
def test_random_stream_equals_one_draw(counts):
    size = sum(counts)
    wanted = torch.rand(size, generator=seeded(1)())
    numbers = RandomStream(torch.rand, (size,), None, seeded(1)())
    assert torch.equal(torch.cat([numbers.take(count) for count in counts]), wanted)


def test_materialized_scores_are_computed_in_every_pass(chunk):
    made = []

    def make(values):
        made.append(len(values))
        return values

    scores = [materialized_scores(t, lambda t=t: make(t.clone())) for t in tensors(2)]
    assert same(
        global_topk_masks(scores, 100, magnitude=True),
        global_topk_masks(tensors(2), 100, magnitude=True),
    )
    assert len(made) >= 2 * len(SHAPES)


@given(st.integers(0, 99), st.integers(1, 40), st.sampled_from([None, 0.3, 1.0]))
def test_only_pruned_places_are_ranked_with_among_pruned(seed, count, density):
    """The reference sorts the scores of the pruned places."""
    scores = tensors(seed)
    torch.manual_seed(seed)
    kept = [None if density is None else (torch.rand(s) < density).float() for s in SHAPES]
    gone = [torch.zeros(s) if k is None else k == 0 for s, k in zip(SHAPES, kept, strict=True)]
    flat = np.concatenate([s.numpy().ravel() for s in scores])
    free = np.flatnonzero(np.concatenate([g.numpy().ravel() for g in gone]))
    count = min(count, len(free))
    wanted = np.zeros(len(flat), bool)
    wanted[free[np.argsort(flat[free], kind="stable")[len(free) - count :]]] = True
    found = global_topk_masks(scores, len(flat) - count, kept, among_pruned=True, min_keep=0)
    assert np.array_equal(np.concatenate([mask.numpy().ravel() for mask in found]), wanted)


def test_topk_of_elementwise_scores_equals_a_sort():
    weight, grad, _ = (torch.randn(40, 50, generator=seeded(i)()) for i in range(3))
    among = torch.rand(40, 50, generator=seeded(5)()) < 0.5
    scores = elementwise_scores(lambda w, g: (w * g).abs(), weight, grad)
    wanted = torch.zeros(2000, dtype=torch.bool)
    product = (weight * grad).abs().where(among, -1.0).flatten()
    wanted[product.argsort()[-70:]] = True
    assert torch.equal(topk_mask(scores, 70, among).flatten(), wanted)


@pytest.mark.parametrize("kind", ["2:4", "1:2", "block:2x3", "block:4x1"])
@pytest.mark.parametrize("shape", [(8, 12), (8, 12, 2, 3)])
@pytest.mark.parametrize("dim", [1, 0])
def test_units_computed_in_row_chunks_equal_the_whole(chunk, kind, shape, dim):
    shape = shape if dim else (shape[1], shape[0], *shape[2:])
    granularity, weight = make_granularity(kind), torch.randn(shape)
    units = units_of(granularity, elementwise_scores(torch.abs, weight), dim)
    wanted = granularity.units(weight.abs(), dim)
    assert torch.equal(units, wanted)
    kept = torch.rand(units.shape) < 0.5
    mask = mask_from_units(granularity, kept, elementwise_scores(torch.abs, weight), dim)
    assert torch.equal(mask, granularity.mask(kept, weight.abs(), dim))


def test_nan_in_computed_scores_raises_with_the_name(chunk):
    weight = torch.tensor([1.0, float("nan"), 2.0])
    with pytest.raises(regrow.StateError, match="fc has 1 NaN scores"):
        global_topk_masks([elementwise_scores(torch.abs, weight)], 1, names=["fc"])
    alive = torch.tensor([1.0, 0.0, 1.0])  # one that is pruned already ranks nowhere
    found = global_topk_masks([elementwise_scores(torch.abs, weight)], 2, [alive], names=["fc"])
    assert found[0].tolist() == [False, False, True]


def test_computed_scores_have_the_layout_of_the_weight():
    weight = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    scores = elementwise_scores(lambda w, g: g.float() * w, weight, torch.randn(2, 3, 4, 4))
    assert isinstance(scores, LazyScores)
    assert scores.dtype == torch.float32
    assert scores.like is weight
