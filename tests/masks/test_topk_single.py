# SPDX-License-Identifier: MIT
"""The highest scores among some places, against a stable sort of them all."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regrow.masks.sort_keys
import regrow.masks.topk
import regrow.masks.topk_single
from regrow.masks.sort_keys import SortKeys, count_true, nonzero, sorted_keys
from regrow.masks.topk_single import topk_mask
from regrow.utils.errors import StateError

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def by_sorting(scores, count, among, magnitude):
    values = scores.double().reshape(-1).numpy()
    values = np.abs(values) if magnitude else values
    places = np.flatnonzero(among.reshape(-1).numpy())
    wanted = np.zeros(values.size, bool)
    wanted[places[np.argsort(values[places], kind="stable")[len(places) - count :]]] = True
    return wanted.reshape(scores.shape)


@given(st.data(), st.integers(1, 30), st.booleans(), st.sampled_from(DTYPES))
def test_small_tensors_with_many_ties_equal_a_stable_sort(data, size, magnitude, dtype):
    levels = st.lists(st.integers(-2, 2), min_size=size, max_size=size)
    scores = torch.tensor(data.draw(levels)).to(dtype)
    among = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    count = data.draw(st.integers(0, int(among.sum())))
    found = topk_mask(scores, count, among, magnitude=magnitude)
    np.testing.assert_array_equal(found.numpy(), by_sorting(scores, count, among, magnitude))


@pytest.mark.parametrize("levels", [0, 1, 3, 300])
@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_large_tensors_in_any_memory_layout_equal_a_stable_sort(levels, magnitude, last):
    """Ties go by the flat index, not by where they lie in memory."""
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randn(64, 48, 5, 5, generator=generator)
    scores = (scores * levels).round() / levels if levels else scores
    among = torch.rand(scores.shape, generator=generator) < 0.3
    if last:
        scores = scores.to(memory_format=torch.channels_last)
    for share in (0.0, 0.03, 0.7, 1.0):
        count = round(share * int(among.sum()))
        found = topk_mask(scores, count, among, magnitude=magnitude)
        assert found.stride() == scores.stride()
        np.testing.assert_array_equal(found.numpy(), by_sorting(scores, count, among, magnitude))


@pytest.mark.parametrize("count", [0, 40, 3_000, 9_000])
def test_tensor_arithmetic_of_other_devices_equals_a_stable_sort(count, monkeypatch):
    """On other devices, integer views stay tensors."""
    for module in (regrow.masks.sort_keys, regrow.masks.topk_single, regrow.masks.topk):
        monkeypatch.setattr(module, "as_numpy", lambda tensor: tensor)
    for scores in (torch.randn(9_000), torch.randn(30, 30, 10).mul(3).round().permute(2, 0, 1)):
        found = topk_mask(scores, count, torch.ones_like(scores, dtype=torch.bool), magnitude=True)
        wanted = by_sorting(scores, count, torch.ones_like(scores, dtype=torch.bool), True)
        np.testing.assert_array_equal(found.numpy(), wanted)


def test_unrepresentative_sample_does_not_change_the_result():
    """All large scores are at positions that are not sampled."""
    scores = torch.linspace(0, 1, 100_000)
    scores[7::14] += 10
    among = torch.ones(100_000, dtype=torch.bool)
    for count in (50, 5_000, 60_000):
        found = topk_mask(scores, count, among)
        np.testing.assert_array_equal(found.numpy(), by_sorting(scores, count, among, False))


@pytest.mark.parametrize("nan", [float("nan"), -float("nan")])
@pytest.mark.parametrize("magnitude", [True, False])
@pytest.mark.parametrize("size", [50, 50_000])
def test_nan_raises_only_at_candidate_places(nan, magnitude, size):
    scores, among = torch.arange(float(size)), torch.ones(size, dtype=torch.bool)
    scores[3] = torch.tensor(nan)
    with pytest.raises(StateError, match="fc has 1 NaN"):
        topk_mask(scores, 5, among, magnitude=magnitude, name="fc")
    among[3] = False
    assert topk_mask(scores, 5, among, magnitude=magnitude).nonzero().flatten().tolist() == [
        *range(size - 5, size)
    ]


def test_empty_input_gives_an_empty_mask():
    assert topk_mask(torch.zeros(0), 0, torch.zeros(0, dtype=torch.bool)).tolist() == []
    assert not topk_mask(torch.ones(3), 0, torch.zeros(3, dtype=torch.bool)).any()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_sort_keys_are_ordered_like_scores(dtype):
    scores = torch.tensor([-float("inf"), -2.0, -0.0, 0.0, 1e-4, 3.0, float("inf")]).to(dtype)
    keys = SortKeys(dtype, magnitude=False)
    signed = keys(scores)
    assert signed[2] == signed[3]
    assert (np.diff(signed)[[0, 1, 3, 4, 5]] > 0).all()
    assert signed[-1] == keys.infinity
    assert not keys.any_nan(signed)
    assert keys.any_nan(keys(torch.tensor([float("nan")]).to(dtype)))
    assert SortKeys(dtype, magnitude=True)(scores)[0] == keys.infinity


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_arrays_and_tensors_are_ranked_equally(make):
    assert sorted_keys(make([3, -1, 2])).tolist() == [-1, 2, 3]
    assert nonzero(make([False, True, True])).tolist() == [1, 2]
    assert count_true(make([False, True, True])) == 2
