# SPDX-License-Identifier: MIT
from __future__ import annotations

import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.data.resumable import epoch_order, generator


def test_generator_is_seeded_by_a_stable_hash_of_its_key() -> None:
    digest = hashlib.blake2b(b"(3, 'order', 5)", digest_size=8).digest()
    seed = int.from_bytes(digest, "little") // 2
    expected = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.randperm(20, generator=generator(3, "order", 5)), expected)


@given(st.integers(1, 60), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_visits_every_sample_once(samples: int, seed: int, epoch: int) -> None:
    order = epoch_order(samples, shuffle=True, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(samples))


@given(st.integers(1, 40), st.integers(1, 50))
def test_ranks_share_one_order_in_equal_parts(samples: int, world: int) -> None:
    whole = epoch_order(samples, shuffle=True, seed=1, epoch=2).tolist()
    parts = [
        epoch_order(samples, shuffle=True, seed=1, epoch=2, rank=rank, world=world).tolist()
        for rank in range(world)
    ]
    assert len({len(part) for part in parts}) == 1
    dealt = [part[i] for i in range(len(parts[0])) for part in parts]
    assert dealt == (whole * world)[: len(dealt)]
    assert 0 <= len(dealt) - samples < world


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = {
        tuple(epoch_order(50, shuffle=True, seed=seed, epoch=epoch).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_global_generators_are_neither_used_nor_changed() -> None:
    torch.manual_seed(0)
    first = epoch_order(50, shuffle=True, seed=0, epoch=0)
    state = torch.get_rng_state()
    torch.rand(3)
    assert torch.equal(epoch_order(50, shuffle=True, seed=0, epoch=0), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
