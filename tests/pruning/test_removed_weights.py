# SPDX-License-Identifier: MIT
"""Stored removed values, compared with a plain dictionary."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.pruning.removed_weights import RemovedWeights
from regrow.utils.errors import StateError

DTYPES = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float64: torch.int64}


def bits(tensor):
    return tensor.detach().view(DTYPES[tensor.dtype])


def drawn(seed, shape, dtype=torch.float32):
    """Values with -0.0, NaN and Inf among them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    flat = values.view(-1)
    for place, odd in enumerate((-0.0, float("nan"), float("inf"), 0.0)):
        flat[place] = odd
    return values


shapes = st.sampled_from([(24,), (4, 6), (2, 3, 2, 2)])
chances = st.lists(st.floats(0, 1), min_size=1, max_size=5)


@given(st.integers(0, 10**6), shapes, chances, st.sampled_from(list(DTYPES)), st.booleans())
def test_stored_values_follow_any_sequence_of_masks(seed, shape, densities, dtype, last_channels):
    """Values of weights that returned are dropped; the others keep the value of their removal."""
    generator = torch.Generator().manual_seed(seed)
    weight, vault, removed, earlier = drawn(seed, shape, dtype), RemovedWeights(), {}, None
    if last_channels and len(shape) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    for number, density in enumerate(densities):
        mask = torch.rand(shape, generator=generator) < density
        vault.store("w", weight, mask, earlier)
        earlier = mask
        before, flat = weight.reshape(-1).clone(), mask.reshape(-1).tolist()
        removed = {i: removed.get(i, before[i].clone()) for i, kept in enumerate(flat) if not kept}
        moved = drawn(seed + number + 1, shape, dtype)
        weight.copy_(torch.where(mask, moved, torch.zeros((), dtype=dtype)))
        assert sum(map(len, vault.values.values())) == len(removed)
    again = RemovedWeights()
    again.load_state_dict(vault.state_dict(), {"w": mask})
    for store in (vault, again):
        found = weight.clone()
        expected = weight.reshape(-1).clone()
        for i, value in removed.items():
            expected[i] = value
        store.restore("w", found, mask)
        assert torch.equal(bits(found.reshape(-1)), bits(expected))
        assert not store.values
        store.restore("w", found, mask)  # there is nothing more to restore
        assert torch.equal(bits(found.reshape(-1)), bits(expected))


def test_values_are_in_flat_order_and_compact():
    vault = RemovedWeights()
    vault.store(
        "w", torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[False, True], [True, False]])
    )
    assert vault.values["w"].tolist() == [1.0, 4.0]
    assert list(vault.values) == ["w"]


def test_stored_values_take_no_extra_memory():
    vault, weight = RemovedWeights(), torch.randn(1000)
    vault.store("w", weight, weight > 0.5)
    assert list(vars(vault)) == ["values"]
    assert vault.values["w"].untyped_storage().nbytes() == 4 * int((weight <= 0.5).sum())


def test_full_mask_stores_nothing():
    vault = RemovedWeights()
    vault.store("w", torch.ones(3), torch.tensor([True, True, True]))
    assert vault.values == {}
    vault.load_state_dict({}, {"w": torch.ones(3, dtype=torch.bool)})
    assert vault.values == {}


def test_state_that_does_not_fit_the_masks_raises_with_the_name():
    vault = RemovedWeights()
    mask = {"fc.weight": torch.tensor([True, False, False])}
    for values, found in ((torch.ones(1), 1), (torch.ones(3), 3)):
        with pytest.raises(StateError, match=rf"{found} removed values of fc\.weight.*prunes 2"):
            vault.load_state_dict({"fc.weight": values}, mask)
    with pytest.raises(StateError, match=r"0 removed values of fc\.weight"):
        vault.load_state_dict({}, mask)


def test_loaded_values_share_no_memory_with_their_source():
    values = torch.tensor([5.0])
    vault = RemovedWeights()
    mask = torch.tensor([True, False])
    vault.load_state_dict({"w": values}, {"w": mask})
    values.zero_()
    weight = torch.zeros(2)
    vault.restore("w", weight, mask)
    assert weight.tolist() == [0.0, 5.0]
