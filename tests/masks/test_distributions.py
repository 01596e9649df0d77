# SPDX-License-Identifier: MIT
"""How targets are shared: against published densities and formulas written in NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from regrow.masks.distributions import (
    DISTRIBUTIONS,
    LayerSize,
    Pool,
    erk,
    erk_densities,
    global_pool,
    lamp_scores,
    largest_remainders,
    uniform,
)
from regrow.utils.errors import ConfigError, StateError

LENET_300_100 = [(300, 784), (100, 300), (10, 100)]
LENET_5 = [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]


def layers(*shapes, pruned=0, least=1):
    return [LayerSize(f"l{i}", s, math.prod(s), pruned, least) for i, s in enumerate(shapes)]


def resnet50():
    """(shape, output positions at 224x224) of every convolution and of the classifier."""
    found = [((64, 3, 7, 7), 112**2)]
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width, size = 64 << stage, 56 >> stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            found += [((width, inputs, 1, 1), (size * stride) ** 2)]
            found += [((width, width, 3, 3), size**2), ((4 * width, width, 1, 1), size**2)]
            if not block:
                found += [((4 * width, inputs, 1, 1), size**2)]
            inputs = 4 * width
    return [*found, ((1000, 2048), 1)]


@pytest.mark.parametrize(
    ("shapes", "sparsity", "densities"),
    [
        (LENET_300_100, 0.8, [0.1622, 0.4694, 1]),
        (LENET_300_100, 0.9, [0.0796, 0.2302, 1]),
        (LENET_300_100, 0.95, [0.0385, 0.1113, 0.9185]),
        (LENET_300_100, 0.98, [0.0154, 0.0445, 0.3674]),
        (LENET_5, 0.9, [1, 0.0871, 0.0884, 1]),
        (LENET_5, 0.98, [0.2779, 0.0143, 0.0146, 0.4572]),
    ],
)
def test_published_erk_densities(shapes, sparsity, densities):
    assert erk_densities(shapes, sparsity) == pytest.approx(densities, abs=5e-5)


@pytest.mark.parametrize(
    ("sparsity", "macs", "dense", "conv1"),
    [(0.8, 0.4138, 8, 0.8572), (0.9, 0.2418, 1, 0.42), (0.95, 0.1217, 0, 0.2098)],
)
def test_erk_on_resnet50_as_published(sparsity, macs, dense, conv1):
    """RigL, table 2: .42, .24 and .12 of the dense multiply-adds."""
    net = resnet50()
    sizes = [math.prod(shape) for shape, _ in net]
    assert sum(sizes) == 25_502_912
    assert sum(n * p for n, (_, p) in zip(sizes, net, strict=True)) == pytest.approx(
        4.089e9, rel=1e-3
    )
    densities = erk_densities([shape for shape, _ in net], sparsity)
    work = [n * p for n, (_, p) in zip(sizes, net, strict=True)]
    share = sum(d * w for d, w in zip(densities, work, strict=True)) / sum(work)
    assert share == pytest.approx(macs, abs=5e-5)
    assert densities.count(1.0) == dense
    assert densities[0] == pytest.approx(conv1, abs=5e-5)


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), min_size=1),
    st.floats(0, 0.999),
)
def test_erk_densities_keep_the_budget(shapes, sparsity):
    densities = erk_densities(shapes, sparsity)
    sizes = [math.prod(shape) for shape in shapes]
    kept = sum(d * n for d, n in zip(densities, sizes, strict=True))
    assert kept == pytest.approx((1 - sparsity) * sum(sizes))
    assert all(0 <= d <= 1 + 1e-9 for d in densities)
    raw = [sum(shape) / n for shape, n in zip(shapes, sizes, strict=True)]
    sparse = [d / r for d, r in zip(densities, raw, strict=True) if d < 1]
    assert sparse == pytest.approx([sparse[0]] * len(sparse) if sparse else [])


def hamilton(ideal, total):
    """Hamilton's method, for shares that sum to about `total`."""
    found = [math.floor(x) for x in ideal]
    order = np.argsort([-(x - math.floor(x)) for x in ideal], kind="stable")
    for i in order[: total - sum(found)]:
        found[i] += 1
    return found


@given(st.lists(st.integers(2, 500), min_size=1, max_size=8), st.floats(0, 0.5))
def test_uniform_uses_largest_remainders(sizes, sparsity):
    total = round(sparsity * sum(sizes))
    pools = uniform(layers(*((n,) for n in sizes)), sparsity)
    assert [pool.layers for pool in pools] == [(i,) for i in range(len(sizes))]
    assert [p.pruned for p in pools] == hamilton([sparsity * n for n in sizes], total)


@given(
    st.sampled_from([uniform, erk]),
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
)
def test_layer_counts_sum_exactly_and_never_shrink(share, shapes, one, two):
    few, many = sorted((one, two))
    start = layers(*shapes)
    most = sum(layer.units - 1 for layer in start)
    assume(round(many * sum(layer.units for layer in start)) <= most)
    first = share(start, few)
    after = [layer._replace(pruned=p.pruned) for layer, p in zip(start, first, strict=True)]
    second = share(after, many)
    for pools, sparsity in ((first, few), (second, many)):
        assert sum(p.pruned for p in pools) == round(sparsity * sum(la.units for la in start))
    for layer, a, b in zip(start, first, second, strict=True):
        assert a.pruned <= b.pruned <= layer.units - 1


def test_uniform_never_differs_by_more_than_one_weight_a_layer():
    pools = uniform(layers((7, 3), (11, 5), (13, 2)), 0.37)
    for pool, size in zip(pools, (21, 55, 26), strict=True):
        assert abs(pool.pruned - 0.37 * size) < 1


def test_global_is_one_pool_with_the_rounded_count():
    assert global_pool(layers((3, 5), (2, 3)), 0.9) == [Pool((0, 1), 19)]
    assert DISTRIBUTIONS["lamp"] is global_pool


@pytest.mark.parametrize("share", [global_pool, uniform, erk])
def test_minimum_that_makes_the_target_unreachable_raises(share):
    with pytest.raises(ConfigError, match=r"each of 2 layers keeps at least 1.*sparsity 0.8 at"):
        share(layers((1, 5), (5, 1)), 0.95)


def test_n_of_m_groups_may_all_be_pruned():
    assert uniform(layers((1, 4), (2, 2), least=0), 1.0) == [Pool((0,), 4), Pool((1,), 4)]


@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(0, 20), st.integers(0, 30)), min_size=1),
    st.data(),
)
def test_rounded_counts_keep_the_sum_within_bounds(rows, data):
    ideal, least = [r[0] for r in rows], [r[1] for r in rows]
    most = [low + extra for low, (_, _, extra) in zip(least, rows, strict=True)]
    total = data.draw(st.integers(sum(least), sum(most)))
    found = largest_remainders(ideal, total, least, most)
    assert sum(found) == total
    assert all(lo <= n <= hi for lo, n, hi in zip(least, found, most, strict=True))


def test_rounded_counts_raise_if_bounds_forbid_the_sum():
    with pytest.raises(ConfigError, match="9 cannot be shared among 2 layers"):
        largest_remainders([4.5, 4.5], 9, [0, 0], [4, 4])


def lamp_reference(scores):
    """Lee et al. 2021, eq. 1, by its definition; ties count as if sorted by flat index."""
    flat = scores.double().numpy().reshape(-1)
    order = np.argsort(flat, kind="stable")
    result = np.empty_like(flat)
    for rank, place in enumerate(order):
        below = np.square(flat[order[rank:]]).sum()
        result[place] = flat[place] ** 2 / below if below else 0
    return result.reshape(scores.shape)


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]), min_size=1, max_size=30))
def test_lamp_equals_its_formula(values):
    scores = torch.tensor(values)
    found = lamp_scores(scores).numpy()
    np.testing.assert_allclose(found, lamp_reference(scores), rtol=1e-12)
    assert not any(values) or found.max() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_lamp_does_not_depend_on_precision_and_layout(dtype):
    torch.manual_seed(0)
    scores = torch.rand(4, 3, 2, 2).to(dtype).contiguous(memory_format=torch.channels_last)
    found = lamp_scores(scores)
    np.testing.assert_allclose(found.numpy(), lamp_reference(scores.contiguous()), rtol=1e-12)
    assert found.stride() == scores.stride()


def test_lamp_ignores_pruned_weights():
    scores, kept = torch.tensor([4.0, 1.0, 2.0]), torch.tensor([0, -1, -1])
    assert lamp_scores(scores, kept).tolist() == pytest.approx([0, 1 / 5, 1])


def test_lamp_raises_for_negative_scores():
    with pytest.raises(StateError, match="LAMP compares squared scores"):
        lamp_scores(torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("value", [float("inf"), 1e200])
def test_lamp_raises_for_scores_that_overflow_when_squared(value):
    scores = torch.tensor([1.0, value, 2.0], dtype=torch.float64)
    with pytest.raises(StateError, match=r"fc has 1 scores that are infinite once squared"):
        lamp_scores(scores, name="fc")
    kept = torch.tensor([True, False, True])
    assert lamp_scores(scores, kept).tolist() == pytest.approx([1 / 5, 0, 1])
