# SPDX-License-Identifier: MIT
"""Groups and blocks against loops over indices."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regrow.masks.granularity import Block, NofM, Weight, make_granularity
from regrow.masks.targets import Target, select_targets
from regrow.utils.errors import ConfigError

LAYERS = {
    "linear": nn.Linear(8, 6),
    "conv": nn.Conv2d(8, 6, 3),
    "conv1d": nn.Conv1d(8, 6, 5),
    "grouped": nn.Conv2d(16, 6, 3, groups=2),
    "transposed": nn.ConvTranspose2d(8, 6, 3),
    "grouped transposed": nn.ConvTranspose2d(8, 6, 3, groups=2),
    "channels_last": nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last),
}


def target(layer):
    return select_targets(layer).targets[0]


def n_of_m(scores, n, m, dim):
    """Keeps the n highest of every m along `dim`, ties from the end, by loops."""
    moved = np.moveaxis(scores.numpy(), dim, -1)
    mask = np.ones(moved.shape, bool)
    for place in itertools.product(*map(range, moved.shape[:-1])):
        for start in range(0, moved.shape[-1], m):
            group = moved[place][start : start + m]
            mask[place][start + np.argsort(group, kind="stable")[: m - n]] = False
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(mask, -1, dim)))


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (3, 8), (4, 8)])
def test_n_of_m_keeps_n_of_every_m_inputs(layer, n, m):
    torch.manual_seed(0)
    found = target(layer)
    inputs = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
    assert found.input_dim == inputs
    scores = torch.empty_like(found.parameter).copy_(torch.randint(0, 5, found.parameter.shape))
    rule = NofM(n, m)
    assert rule.misfit(found) is None
    units = rule.units(scores, inputs)
    mask = rule.mask(torch.zeros_like(units, dtype=torch.bool), scores, inputs)
    assert torch.equal(mask, n_of_m(scores, n, m, inputs))
    groups = mask.movedim(inputs, -1).reshape(-1, m)
    assert groups.sum(1).eq(n).all()
    assert mask.stride() == scores.stride()
    assert not rule.kept_units(mask, inputs).any()
    assert units.numel() * m == scores.numel()


def test_group_score_is_the_sum_of_its_smallest_scores():
    scores = torch.tensor([[5.0, 1.0, 4.0, 2.0, 9.0, 9.0, 0.0, 9.0]])
    assert NofM(2, 4).units(scores, 1).tolist() == [[3.0, 9.0]]
    assert NofM(1, 4).units(scores, 1).tolist() == [[7.0, 18.0]]


def test_only_groups_selected_for_pruning_lose_weights():
    scores = torch.arange(8.0).view(1, 8)
    mask = NofM(2, 4).mask(torch.tensor([[True, False]]), scores, 1)
    assert mask.int().tolist() == [[1, 1, 1, 1, 0, 0, 1, 1]]
    assert NofM(2, 4).kept_units(mask, 1).tolist() == [[True, False]]


def test_nan_among_kept_weights_of_a_group_is_found():
    scores = torch.tensor([[1.0, 2.0, float("nan"), 3.0, 1.0, 1.0, 1.0, float("inf")]])
    assert NofM(2, 4).units(scores, 1).isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("rule", [NofM(2, 4), Block(2, 4)])
def test_half_precision_scores_are_summed_in_float32(rule):
    scores = torch.full((2, 4), 2048.0).half()
    scores[0, 0] = 1.0  # 2048 + 1 has no half-precision value
    assert rule.units(scores, 1).dtype == torch.float32
    assert float(rule.units(scores, 1).flatten()[0]) in (2049.0, (7 * 2048 + 1) / 8)
    assert rule.units(scores.double(), 1).dtype == torch.float64


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 4), (3, 2), (6, 8)])
def test_blocks_tile_the_matrix_of_outputs_by_inputs(layer, rows, columns):
    torch.manual_seed(0)
    found = target(layer)
    shape = found.parameter.shape
    scores = torch.empty_like(found.parameter).copy_(torch.rand(shape))
    first = 1 if found.input_dim == 0 else 0
    matrix = np.moveaxis(scores.numpy(), first, 0).reshape(shape[first], -1)
    rule = Block(rows, columns)
    if matrix.shape[0] % rows or matrix.shape[1] % columns:
        assert f"blocks of {rows}x{columns} do not tile weight" in rule.misfit(found)
        return
    assert rule.misfit(found) is None
    units = rule.units(scores, found.input_dim)
    kept = torch.rand(units.shape) > 0.5
    wanted = np.ones(matrix.shape, bool)
    for i, j in np.ndindex(*units.shape):
        block = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        assert float(units[i, j]) == pytest.approx(matrix[block].mean())
        wanted[block] = kept[i, j]
    mask = rule.mask(kept, scores, found.input_dim)
    found_matrix = np.moveaxis(mask.numpy(), first, 0).reshape(matrix.shape)
    np.testing.assert_array_equal(found_matrix, wanted)
    assert mask.stride() == scores.stride()
    assert torch.equal(rule.kept_units(mask, found.input_dim), kept)


@given(st.integers(1, 3), st.integers(2, 4), st.integers(1, 4), st.integers(0, 99))
def test_units_can_be_read_back_from_their_mask(out, m, groups, seed):
    """The kept units can be recovered from a mask made from them."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(out, m * groups, generator=generator)
    kept = torch.rand(out, groups, generator=generator) > 0.5
    for n in range(1, m):
        mask = NofM(n, m).mask(kept, scores, 1)
        assert torch.equal(NofM(n, m).kept_units(mask, 1), kept)


def test_single_weights_fit_every_parameter():
    assert Weight().misfit(Target("bias", nn.Parameter(torch.zeros(3)), None)) is None


@pytest.mark.parametrize(
    ("name", "kind", "weights", "limit", "least"),
    [
        ("weight", Weight, 1, 1, 1),
        ("2:4", NofM, 2, 0.5, 0),
        ("1:16", NofM, 15, 15 / 16, 0),
        ("block:4x2", Block, 8, 1, 1),
    ],
)
def test_names_make_granularities(name, kind, weights, limit, least):
    rule = make_granularity(name)
    assert isinstance(rule, kind)
    assert (rule.weights, rule.limit, rule.least) == (weights, limit, least)


@pytest.mark.parametrize("name", ["2;4", "block:4", "channel", "", 124, "2:4:8"])
def test_unknown_granularities_raise(name):
    with pytest.raises(ConfigError, match="granularity must be 'weight', 'n:m' such as '2:4'"):
        make_granularity(name)


@pytest.mark.parametrize("name", ["4:4", "0:4", "5:4"])
def test_n_of_m_requires_n_below_m(name):
    with pytest.raises(ConfigError, match="needs 0 < n < m"):
        make_granularity(name)


def test_empty_blocks_raise():
    with pytest.raises(ConfigError, match="at least 1x1"):
        make_granularity("block:0x4")


def test_n_of_m_that_does_not_divide_raises_with_the_name():
    misfit = NofM(2, 4).misfit(target(nn.Linear(6, 4)))
    assert "2:4 does not divide weight, which has 6 inputs" in misfit
    bias = Target("fc.bias", nn.Parameter(torch.zeros(8)), None)
    assert "fc.bias, which has no input dimension" in NofM(2, 4).misfit(bias)
    assert "do not tile fc.bias" in Block(1, 4).misfit(bias)
