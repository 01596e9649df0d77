# SPDX-License-Identifier: MIT
from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.app.data.base import check_val_size, split_stratified
from regrow.utils.errors import ConfigError


@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.integers(0, 9), st.data())
def test_classes_are_proportional_and_the_sum_is_exact(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    held_out = data.draw(st.integers(1, len(labels) - 1))
    stay, held = split_stratified(torch.tensor(labels), held_out, seed)
    assert sorted([*stay.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert len(held) == held_out
    assert stay.tolist() == sorted(stay.tolist())
    for label in range(5):
        mine, size = [labels[i] for i in held].count(label), labels.count(label)
        assert abs(mine - Fraction(held_out * size, len(labels))) < 1


def test_split_depends_on_the_seed() -> None:
    labels = torch.arange(100) % 5
    first = split_stratified(labels, 20, 0)[1]
    assert torch.equal(split_stratified(labels, 20, 0)[1], first)
    assert not torch.equal(split_stratified(labels, 20, 1)[1], first)


@pytest.mark.parametrize(("given_", "count"), [(0.25, 25), (1, 1), (99, 99)])
def test_held_out_size_may_be_a_count_or_a_fraction(given_: float, count: int) -> None:
    assert check_val_size(given_, 100) == count


@pytest.mark.parametrize("wrong", [0, 0.0, 0.999, 1.0, 100, -1, 0.001, "0.1", None, True])
def test_impossible_held_out_sizes_raise(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"val_size must be .* from 1 to 99, got .*write 0\.1"):
        check_val_size(wrong, 100)
