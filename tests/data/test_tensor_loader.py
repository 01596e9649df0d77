# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regrow.data import tensor_loader as module
from regrow.data.tensor_loader import BatchLoader
from regrow.utils.errors import ConfigError, StateError


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    return images + torch.rand(len(images), generator=generator)


def make(samples: int = 10, batch_size: int = 3, **kw: Any) -> BatchLoader:
    numbers = torch.arange(samples)
    return BatchLoader(numbers.float(), numbers, batch_size=batch_size, shuffle=True, **kw)


def epoch(loader: BatchLoader, number: int) -> list[tuple[list[float], list[int]]]:
    loader.set_epoch(number)
    return [(images.tolist(), labels.tolist()) for images, labels in loader]


@given(st.integers(1, 30), st.integers(1, 12), st.booleans())
def test_batches_cover_the_epoch_once(samples: int, batch_size: int, drop_last: bool) -> None:
    if drop_last and samples < batch_size:
        return
    loader = make(samples, batch_size, drop_last=drop_last)
    batches = epoch(loader, 1)
    assert len(batches) == len(loader)
    labels = [label for _, part in batches for label in part]
    assert all(images == labels for images, labels in batches)
    assert all(len(part) == batch_size for _, part in batches[:-1])
    if drop_last:
        assert len(set(labels)) == len(labels) == samples // batch_size * batch_size
    else:
        assert sorted(labels) == list(range(samples))


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3), st.data())
def test_loaded_state_continues_with_the_next_batch(
    samples: int, batch_size: int, number: int, data: st.DataObject
) -> None:
    whole = make(samples, batch_size, transform=noise)
    cut = data.draw(st.integers(0, len(whole)))
    expected = epoch(whole, number), epoch(whole, number + 1)

    first = make(samples, batch_size, transform=noise)
    first.set_epoch(number)
    batches = iter(first)
    for _ in range(cut):
        next(batches)

    again = make(samples, batch_size, transform=noise)
    iter(again)  # made and thrown away, as Lightning does
    again.load_state_dict(first.state_dict())
    assert again.state_dict() == first.state_dict()
    assert epoch(again, number) == expected[0][cut:]
    assert epoch(again, number) == expected[0]
    assert epoch(again, number + 1) == expected[1]


def test_set_epoch_after_loading_starts_that_epoch() -> None:
    loader = make()
    loader.load_state_dict({"epoch": 1, "batch": 2, "batches": 4, "seed": 0, "skipped": 0})
    assert epoch(loader, 2) == epoch(make(), 2)


def test_an_epoch_without_batches_right_after_loading_does_not_count() -> None:
    loader = make()
    loader.load_state_dict({"epoch": 1, "batch": 4, "batches": 4, "seed": 0, "skipped": 0})
    loader.set_epoch(2)
    assert epoch(loader, 3) == epoch(make(), 2)
    assert epoch(loader, 4) == epoch(make(), 3)
    again = make()
    again.load_state_dict(loader.state_dict())
    assert epoch(again, 5) == epoch(make(), 4)


def test_set_epoch_works_in_any_order_without_a_state() -> None:
    loader = make()
    loader.set_epoch(7)
    assert epoch(loader, 9) == epoch(make(), 9)
    assert epoch(loader, 0) == epoch(make(), 0)


def test_global_generator_is_neither_used_nor_changed() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = epoch(make(transform=noise), 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert epoch(make(transform=noise), 0) == first


def test_augmentation_differs_by_batch_epoch_and_seed() -> None:
    drawn = {
        tuple(images[i] - labels[i] for i in range(2))
        for seed in (0, 1)
        for number in (0, 1)
        for images, labels in epoch(make(8, 2, seed=seed, transform=noise), number)
    }
    assert len(drawn) == 16


def test_ranks_take_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for rank in range(3):
        monkeypatch.setattr(module, "rank_and_world", lambda rank=rank: (rank, 3))
        loader = make(10, 2)
        assert len(loader) == 2
        parts.append([label for _, labels in epoch(loader, 1) for label in labels])
    assert [len(part) for part in parts] == [4, 4, 4]
    assert set().union(*parts) == set(range(10))


def test_state_holds_builtin_numbers_only() -> None:
    loader = make()
    next(iter(loader))
    state = loader.state_dict()
    assert state == {"epoch": 0, "batch": 1, "batches": 4, "seed": 0, "skipped": 0}
    assert all(type(value) is int for value in state.values())


@pytest.mark.parametrize("other", [{"batch_size": 2}, {"seed": 1}, {"samples": 20}])
def test_state_of_other_batches_raises_in_mid_epoch_only(other: dict[str, int]) -> None:
    loader = make()
    batches = iter(loader)
    next(batches)
    with pytest.raises(StateError, match="saved at batch 1 of an epoch of 4 batches with seed 0"):
        make(**other).load_state_dict(loader.state_dict())
    list(batches)
    make(**other).load_state_dict(loader.state_dict())


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "8"])
def test_batch_size_must_be_a_count(batch_size: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"batch_size (must be a whole number of at least 1|is the text '8')"
    ):
        make(batch_size=batch_size)


def test_sizes_that_do_not_fit_raise() -> None:
    with pytest.raises(ConfigError, match="equally many"):
        BatchLoader(torch.zeros(3), torch.zeros(2), batch_size=1)
    with pytest.raises(ConfigError, match="write at most 10"):
        make(batch_size=11, drop_last=True)
    with pytest.raises(ConfigError, match="seed must be"):
        make(seed=-1)
