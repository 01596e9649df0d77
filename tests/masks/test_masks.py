# SPDX-License-Identifier: MIT
"""Masks: counting, packing, and what does not fit."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.masks.masks import Masks
from regrow.utils.bits import joined_bits, pack_bits, pruned_before, unpack_bits
from regrow.utils.errors import ConfigError, StateError


def some(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Masks(
        {f"p{i}": torch.rand(shape, generator=generator) < 0.4 for i, shape in enumerate(shapes)}
    )


def test_total_pruned_sparsity_and_density_are_counted():
    masks = some((3, 5), (7,), ())
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert (masks.total, masks.pruned) == (23, 23 - kept)
    assert masks.sparsity == (23 - kept) / 23
    assert masks.density("p0") == int(masks["p0"].sum()) / 15
    assert len(masks) == 3
    assert "23 weights" in repr(masks)
    assert Masks({}).sparsity == 0


@pytest.mark.parametrize("bad", [torch.ones(2), torch.ones(2, dtype=torch.uint8), [True]])
def test_only_bool_tensors_are_taken(bad):
    with pytest.raises(ConfigError, match=r"the mask of fc.weight must be a bool tensor"):
        Masks({"fc.weight": bad})


@given(st.lists(st.integers(0, 5), max_size=4), st.integers(0, 99))
def test_packed_bits_are_in_flat_order(shape, seed):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    bits = [int(byte) >> i & 1 for byte in packed for i in range(8)]
    assert bits[: mask.numel()] == mask.reshape(-1).int().tolist()
    assert packed.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack_bits(packed, shape), mask)


def test_masks_survive_a_weights_only_file():
    masks = some((3, 5), (4, 3, 2, 2), ())
    file = io.BytesIO()
    torch.save(masks.pack(), file)
    file.seek(0)
    found = Masks.unpack(torch.load(file, weights_only=True))
    assert list(found) == list(masks)
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    assert found.digest() == masks.digest()


def test_packing_does_not_depend_on_strides():
    mask = torch.rand(4, 3, 2, 2) < 0.5
    last = mask.contiguous(memory_format=torch.channels_last)
    assert torch.equal(pack_bits(mask), pack_bits(last))
    assert Masks({"w": mask}).digest() == Masks({"w": last}).digest()


def test_packed_masks_are_a_thirty_second_of_float32_weights():
    masks = some((300, 784))
    assert masks.pack()["bits"]["p0"].nbytes == 300 * 784 * 4 / 32


def damaged(how):
    packed = some((3, 5), (9,)).pack()
    how(packed)
    return packed


@pytest.mark.parametrize(
    "how",
    [
        lambda p: p["bits"].pop("p1"),
        lambda p: p["shapes"].pop("p1"),
        lambda p: p["bits"].update(p1=p["bits"]["p1"][:-1]),
        lambda p: p["bits"].update(p1=p["bits"]["p1"].float()),
        lambda p: p["bits"].update(p1=None),
        lambda p: p["shapes"].update(p1=[99]),
        lambda p: p.pop("bits") and p["shapes"].pop("p0"),
    ],
)
def test_damaged_masks_raise_with_the_name(how):
    with pytest.raises(StateError, match="packed masks of p1 are missing or damaged"):
        Masks.unpack(damaged(how))


def test_masks_of_another_model_raise_with_the_names():
    masks = some((3, 5), (9,))
    masks.check({"p0": torch.zeros(3, 5), "p1": torch.zeros(9)})
    with pytest.raises(StateError) as refusal:
        masks.check({"p0": torch.zeros(5, 3), "p2": torch.zeros(9)})
    for part in ("p0 is (5, 3), its mask (3, 5)", "p1 is masked but not", "p2 has no mask"):
        assert part in str(refusal.value)
    with pytest.raises(StateError, match="p0 has no mask"):
        Masks.unpack({}).check({"p0": torch.zeros(3)})


def test_digest_depends_on_names_shapes_and_bits():
    mask = torch.ones(4, 4, dtype=torch.bool)
    other = mask.clone()
    other[0, 0] = False
    variants = [{"a": mask}, {"b": mask}, {"a": mask.view(2, 8)}, {"a": other}]
    assert len({Masks(variant).digest() for variant in variants}) == 4


def test_unpacked_masks_can_be_written_to():
    mask = unpack_bits(torch.from_numpy(np.array([5], dtype=np.uint8)), [3])
    mask[1] = True
    assert mask.all()


@given(st.lists(st.lists(st.booleans(), max_size=40), min_size=1, max_size=5))
def test_joined_bits_equal_packing_all_at_once(parts):
    packed = [pack_bits(torch.tensor(part, dtype=torch.bool)) for part in parts]
    places = np.array([place for part in parts for place in part], dtype=bool)
    wanted = np.packbits(places, bitorder="little")
    assert np.array_equal(joined_bits(packed, [len(part) for part in parts]).numpy(), wanted)


@given(st.lists(st.booleans(), max_size=40))
def test_zeros_before_an_index_are_counted(places):
    bits = pack_bits(torch.tensor(places, dtype=torch.bool))
    for index in range(len(places) + 1):
        assert pruned_before(bits, index) == places[:index].count(False)
