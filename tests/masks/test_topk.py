# SPDX-License-Identifier: MIT
"""Selection against a stable sort written in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regrow.masks.topk
from regrow.masks.topk import global_topk_masks
from regrow.utils.bits import integer_type
from regrow.utils.errors import ConfigError, StateError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def reference(scores, pruned, kept=None, *, magnitude=False, least=1):
    """Prunes by a stable sort of (score, tensor, flat index); the best `least` of each are safe."""
    flat = [s.double().numpy().reshape(-1) for s in scores]
    flat = [np.abs(f) if magnitude else f + 0.0 for f in flat]
    alive = [np.ones(len(f), bool) for f in flat]
    if kept is not None:
        alive = [
            a if k is None else (k != 0).numpy().reshape(-1)
            for a, k in zip(alive, kept, strict=True)
        ]
    masks = [a.copy() for a in alive]
    prunable = []
    for layer, (values, live) in enumerate(zip(flat, alive, strict=True)):
        order = [i for i in np.argsort(values, kind="stable") if live[i]]
        free = order[: max(0, len(order) - least)]
        prunable += [(values[i], layer, i) for i in free]
    count = pruned - sum(int((~a).sum()) for a in alive)
    for _, layer, i in sorted(prunable)[:count]:
        masks[layer][i] = False
    return [torch.from_numpy(m).view(s.shape) for m, s in zip(masks, scores, strict=True)]


def same(found, wanted):
    return all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@st.composite
def cases(draw):
    """A few small tensors with many ties, some places already pruned, and a count in reach."""
    dtype = draw(st.sampled_from(DTYPES))
    value = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.5, 1e-7, float("inf"), -float("inf")])
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    scores = [
        torch.tensor(draw(st.lists(value, min_size=n, max_size=n)), dtype=dtype) for n in sizes
    ]
    kept = [
        draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n).map(torch.tensor))
        for n in sizes
    ]
    least = draw(st.integers(0, 2))
    live = [n if k is None else int(k.sum()) for n, k in zip(sizes, kept, strict=True)]
    done = sum(sizes) - sum(live)
    pruned = draw(st.integers(done, done + sum(max(0, n - least) for n in live)))
    return scores, pruned, kept, draw(st.booleans()), least


@given(cases())
def test_masks_equal_a_stable_sort(case):
    scores, pruned, kept, magnitude, least = case
    found = global_topk_masks(scores, pruned, kept, magnitude=magnitude, min_keep=least)
    assert same(found, reference(scores, pruned, kept, magnitude=magnitude, least=least))
    assert sum(int((~mask).sum()) for mask in found) == pruned


@given(st.data())
def test_more_pruning_keeps_what_was_pruned(data):
    scores = [torch.randint(-3, 4, (7, 5)).float(), torch.randint(-3, 4, (11,)).float()]
    fewer = data.draw(st.integers(0, 44))
    more = data.draw(st.integers(fewer, 44))
    before, after = global_topk_masks(scores, fewer), global_topk_masks(scores, more)
    assert all(bool((b | ~a).all()) for b, a in zip(before, after, strict=True))
    assert same(global_topk_masks(scores, more, before), after)  # in two steps as in one


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [True, False])
def test_random_scores_in_chunks_equal_a_stable_sort(monkeypatch, dtype, magnitude):
    """Real-valued scores, each tensor cut into many chunks."""
    monkeypatch.setattr(regrow.masks.topk, "CHUNK", 37)
    torch.manual_seed(0)
    scores = [torch.randn(40, 30).to(dtype), torch.randn(700).to(dtype), torch.randn(()).to(dtype)]
    for pruned in (0, 1, 950, 1898):
        found = global_topk_masks(scores, pruned, magnitude=magnitude)
        assert same(found, reference(scores, pruned, magnitude=magnitude))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [True, False])
def test_tensor_arithmetic_of_other_devices_equals_a_stable_sort(monkeypatch, dtype, magnitude):
    """On other devices integer views stay tensors; more scores than are sorted at once."""
    for module in (regrow.masks.sort_keys, regrow.masks.topk):
        monkeypatch.setattr(module, "as_numpy", lambda tensor: tensor)
    torch.manual_seed(0)
    scores, kept = [torch.randn(200, 90).to(dtype), torch.randn(700).to(dtype)], torch.rand(200, 90)
    for alive in (None, [kept > 0.2, torch.ones(700, dtype=torch.bool)]):
        found = global_topk_masks(scores, 9_000, alive, magnitude=magnitude)
        assert same(found, reference(scores, 9_000, alive, magnitude=magnitude))


def test_ties_go_by_tensor_order_then_flat_index():
    a, b = torch.ones(2, 2), torch.ones(3)
    found = global_topk_masks([a, b], 5)
    assert found[0].tolist() == [[False, False], [False, True]]  # its last one is kept for it
    assert found[1].tolist() == [False, False, True]
    assert global_topk_masks([a, b], 2)[0].tolist() == [[False, False], [True, True]]


def test_half_precision_ties_are_exact():
    """bfloat16 has few values: a threshold alone would prune hundreds too many."""
    torch.manual_seed(0)
    scores = torch.randn(100_000).bfloat16()
    mask = global_topk_masks([scores], 50_000, magnitude=True)[0]
    assert int((~mask).sum()) == 50_000
    assert same([mask], reference([scores], 50_000, magnitude=True))


def test_mixed_dtypes_are_compared_by_value():
    scores = [torch.tensor([1.0, 3.0]).half(), torch.tensor([2.0, 4.0]).bfloat16()]
    scores.append(torch.tensor([0.5, 2.5], dtype=torch.float64))
    assert same(global_topk_masks(scores, 3), reference(scores, 3))


def test_float8_scores_are_ranked_by_value():
    scores = torch.tensor([1.0, -2.0, 0.5, 4.0]).to(torch.float8_e4m3fn)
    assert global_topk_masks([scores], 2, magnitude=True)[0].tolist() == [False, True, False, True]


LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda t: t.repeat_interleave(2, 3)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_does_not_depend_on_strides(monkeypatch, layout):
    monkeypatch.setattr(regrow.masks.topk, "CHUNK", 16)
    torch.manual_seed(0)
    plain = torch.randint(0, 4, (6, 4, 3, 2)).float()
    strided = LAYOUTS[layout](plain)
    kept = torch.rand(plain.shape) > 0.3
    pruned = 100
    wanted = reference([plain], pruned, [kept])
    for scores in (plain, strided):
        for alive in (kept, LAYOUTS[layout](kept), LAYOUTS[layout](kept.int().neg())):
            assert same(global_topk_masks([scores], pruned, [alive]), wanted)
    if layout != "every other":
        assert global_topk_masks([strided], pruned)[0].stride() == strided.stride()


def test_expanded_scores_are_ranked_by_value():
    """One score a row, as a criterion may give it."""
    rows = torch.tensor([3.0, 1.0, 2.0]).unsqueeze(1).expand(3, 4)
    assert global_topk_masks([rows], 6)[0].int().tolist() == [[1] * 4, [0] * 4, [0, 0, 1, 1]]


def test_every_tensor_keeps_one_weight_and_the_total_is_exact():
    small, large = torch.full((4,), 0.01), torch.arange(1.0, 21.0)
    masks = global_topk_masks([small, large], 10)
    assert masks[0].tolist() == [False, False, False, True]
    assert int((~masks[1]).sum()) == 7
    assert global_topk_masks([small], 4, min_keep=0)[0].tolist() == [False] * 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_raises_with_the_name(dtype, sign):
    scores = [torch.ones(3, dtype=dtype), torch.tensor([1.0, float("nan")], dtype=dtype) * sign]
    with pytest.raises(StateError, match=r"fc.weight has 1 NaN scores"):
        global_topk_masks(scores, 2, names=["conv.weight", "fc.weight"])


def test_nan_with_a_payload_in_the_low_bits_is_found():
    bits = torch.tensor([0x7F800001, 0x3F800000], dtype=torch.int32)
    with pytest.raises(StateError, match="NaN"):
        global_topk_masks([bits.view(torch.float32)], 1)


def test_nan_at_a_pruned_place_is_ignored():
    scores = torch.tensor([float("nan"), float("inf"), 1.0])
    kept = torch.tensor([False, True, True])
    assert global_topk_masks([scores], 2, [kept])[0].tolist() == [False, True, False]


def test_infinity_is_the_highest_score():
    scores = torch.tensor([float("inf"), 1.0, -float("inf")])
    assert global_topk_masks([scores], 2)[0].tolist() == [True, False, False]
    assert global_topk_masks([scores], 2, magnitude=True)[0].tolist() == [False, False, True]


@pytest.mark.parametrize("pruned", [-1, 6])
def test_counts_out_of_reach_raise(pruned):
    with pytest.raises(ConfigError, match=f"{pruned} of 6 places cannot be pruned"):
        global_topk_masks([torch.ones(6)], pruned)


def test_fewer_than_already_pruned_raises():
    with pytest.raises(ConfigError, match="2 are pruned already"):
        global_topk_masks([torch.ones(4)], 1, [torch.tensor([True, False, False, True])])


def test_scores_that_need_gradients_are_only_read():
    scores = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    assert global_topk_masks([scores], 1, magnitude=True)[0].tolist() == [True, False]
    assert scores.tolist() == [2.0, -1.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_type_has_the_same_width(dtype):
    assert integer_type(dtype).itemsize == dtype.itemsize
    assert not integer_type(dtype).is_floating_point
