# SPDX-License-Identifier: MIT
"""From weights to masks: every criterion, distribution and granularity together."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regrow.criteria.movement import Movement
from regrow.masks.targets import select_targets
from regrow.pruning.compute_masks import choose_masks
from regrow.pruning.config import PruningConfig
from regrow.utils.errors import ConfigError, StateError


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 4, 3))


def choose(model, method, sparsity, kept=None, own=None, event=0):
    targets = select_targets(model, method.include, method.exclude).targets
    kept = kept or [None] * len(targets)
    return choose_masks(method.validated(), targets, kept, sparsity, own or {}, event)


def weights(model):
    return [p.detach() for n, p in model.named_parameters() if n.endswith("weight")]


@given(
    st.sampled_from(["global", "uniform", "erk", "lamp"]),
    st.sampled_from(["magnitude", "random", "taylor"]),
    st.floats(0, 0.98),
    st.floats(0, 0.98),
)
def test_counts_are_exact_and_masks_only_shrink(distribution, criterion, one, two):
    few, many = sorted((one, two))
    model = network()
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    total = sum(w.numel() for w in weights(model))
    method = PruningConfig(criterion, distribution)
    first = choose(model, method, few)
    assert sum(int((~m).sum()) for m in first) == round(few * total)
    second = choose(model, method, many, first, event=1)
    assert sum(int((~m).sum()) for m in second) == round(many * total)
    for before, after in zip(first, second, strict=True):
        assert not (after & ~before).any(), "what is pruned stays pruned"
        assert after.any(), "no layer is emptied"


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk", "lamp"])
def test_masks_are_the_same_on_every_run(distribution):
    masks = [
        choose(network(), PruningConfig("random", distribution, seed=3), 0.7) for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_global_magnitude_equals_a_sort_of_all_weights():
    model = network()
    flat = np.concatenate([w.abs().numpy().reshape(-1) for w in weights(model)])
    wanted = np.ones(len(flat), bool)
    wanted[np.argsort(flat, kind="stable")[: round(0.7 * len(flat))]] = False
    found = torch.cat([m.reshape(-1) for m in choose(model, PruningConfig(), 0.7)])
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_lamp_equals_a_sort_of_rescored_weights():
    model = network()
    rescored = []
    for w in weights(model):
        flat = np.square(w.double().numpy().reshape(-1))
        order = np.argsort(flat, kind="stable")
        rescored.append(np.empty_like(flat))
        for rank, place in enumerate(order):
            rescored[-1][place] = flat[place] / flat[order[rank:]].sum()
    flat = np.concatenate(rescored)
    wanted = np.ones(len(flat), bool)
    wanted[np.argsort(flat, kind="stable")[: round(0.9 * len(flat))]] = False
    found = torch.cat(
        [m.reshape(-1) for m in choose(model, PruningConfig(distribution="lamp"), 0.9)]
    )
    np.testing.assert_array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("criterion", ["gradient", "taylor", "snip"])
def test_criteria_read_gradients(criterion):
    model = network()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    scores = [
        (p.grad if criterion == "gradient" else p.grad * p).detach().abs().numpy().reshape(-1)
        for n, p in model.named_parameters()
        if n.endswith("weight")
    ]
    flat = np.concatenate(scores)
    wanted = np.ones(len(flat), bool)
    wanted[np.argsort(flat, kind="stable")[: round(0.6 * len(flat))]] = False
    found = torch.cat([m.reshape(-1) for m in choose(model, PruningConfig(criterion), 0.6)])
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_frozen_layer_without_gradient_raises_with_its_name():
    model = network()
    for p in model[0].parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(StateError, match=r"needs the gradient of 1.weight"):
        choose(model, PruningConfig("taylor"), 0.5)


@pytest.mark.parametrize("granularity", ["weight", "2:4", "block:2x2"])
@pytest.mark.parametrize("distribution", ["global", "uniform", "erk", "lamp"])
def test_nan_raises_with_the_name(granularity, distribution):
    model = network()
    with torch.no_grad():
        model[1].weight[3, 2, 1, 0] = float("nan")
    sparsity = 0.5 if granularity == "2:4" else 0.7
    with pytest.raises(StateError, match=r"1.weight has \d+ NaN scores"):
        choose(model, PruningConfig(granularity=granularity, distribution=distribution), sparsity)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2)])
@pytest.mark.parametrize("distribution", ["global", "uniform", "erk", "lamp"])
def test_n_of_m_keeps_n_of_every_m_in_the_end(n, m, distribution):
    model, limit = network(), (m - n) / m
    method = PruningConfig(granularity=f"{n}:{m}", distribution=distribution)
    kept, total = None, sum(w.numel() for w in weights(model))
    for sparsity in (0.3 * limit, 0.7 * limit, limit):
        masks = choose(model, method, sparsity, kept)
        pruned = sum(int((~mask).sum()) for mask in masks)
        assert pruned == round(sparsity / limit * total / m) * (m - n), "whole groups"
        for mask, dim in zip(masks, (1, 1, 0), strict=True):
            left = mask.movedim(dim, -1).reshape(-1, m).sum(1)
            assert set(left.tolist()) <= {n, m}
        if kept is not None:
            assert not any((b & ~a).any() for a, b in zip(kept, masks, strict=True))
        kept = masks
    for mask, dim in zip(kept, (1, 1, 0), strict=True):
        assert mask.movedim(dim, -1).reshape(-1, m).sum(1).eq(n).all()


def test_gradual_n_of_m_prunes_groups_with_the_smallest_loss_first():
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(
            torch.tensor([[9.0, 9.0, 1.0, 2.0], [1.0, 1.0, 9.0, 9.0], [5.0, 5.0, 5.0, 5.0]])
        )
    [mask] = choose(model, PruningConfig(granularity="2:4"), 1 / 3)
    assert mask.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk", "lamp"])
def test_blocks_are_exact_to_one_block(distribution):
    model = network()
    total = sum(w.numel() for w in weights(model))
    kept = None
    for sparsity in (0.3, 0.55, 0.9):
        method = PruningConfig(granularity="block:2x2", distribution=distribution)
        masks = choose(model, method, sparsity, kept)
        pruned = sum(int((~mask).sum()) for mask in masks)
        assert pruned == 4 * round(sparsity * total / 4)
        if kept is not None:
            assert not any((b & ~a).any() for a, b in zip(kept, masks, strict=True))
        kept = masks
        for mask, first in zip(masks, (0, 0, 1), strict=True):
            matrix = mask.movedim(first, 0).flatten(1)
            blocks = matrix.view(len(matrix) // 2, 2, -1, 2).sum((1, 3))
            assert set(blocks.flatten().tolist()) <= {0, 4}


def test_layer_targets_work_with_a_distribution():
    model = network()
    masks = choose(model, PruningConfig(), 0.9, own={"0.weight": 0.25})
    sizes = [mask.numel() for mask in masks]
    assert int((~masks[0]).sum()) == round(0.25 * sizes[0])
    assert sum(int((~m).sum()) for m in masks[1:]) == round(0.9 * sum(sizes[1:]))


def test_erk_densities_follow_the_layer_shapes():
    model = nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10))
    masks = choose(model, PruningConfig(distribution="erk"), 0.95)
    densities = [float(mask.float().mean()) for mask in masks]
    assert densities == pytest.approx([0.0385, 0.1113, 0.9185], abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("granularity", ["weight", "2:4", "block:2x2"])
@pytest.mark.parametrize("distribution", ["global", "lamp"])
def test_masks_are_exact_in_every_precision(dtype, granularity, distribution):
    model = network().to(dtype)
    masks = choose(model, PruningConfig(distribution=distribution, granularity=granularity), 0.5)
    total = sum(mask.numel() for mask in masks)
    assert sum(int((~mask).sum()) for mask in masks) == total // 2


@pytest.mark.parametrize("granularity", ["weight", "2:4", "block:2x2"])
def test_channels_last_changes_nothing(granularity):
    plain, last = network(), network().to(memory_format=torch.channels_last)
    for p in (*plain.parameters(), *last.parameters()):
        p.grad = torch.ones_like(p)
    contiguous = PruningConfig(lambda w, g: (w * g).abs().contiguous(), granularity=granularity)
    for method in (PruningConfig(granularity=granularity), contiguous):
        found = choose(last, method, 0.25)
        wanted = choose(plain, method, 0.25)
        assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))
        working = [-m.to(p) for m, p in zip(found, weights(last), strict=True)]
        again = choose(last, method, 0.5, working)
        assert all(
            torch.equal(f, w)
            for f, w in zip(again, choose(plain, method, 0.5, wanted), strict=True)
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "magnitud"}, "criterion must be one of"),
        ({"distribution": "globl"}, "distribution must be one of .* did you mean 'global'"),
        ({"granularity": "2-4"}, "granularity must be 'weight'"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"layers": ["fc"]}, "layers must map patterns to sparsities"),
        ({"layers": {"fc": 90}}, "the sparsity of layers 'fc' must be in .* write 0.9 for 90 %"),
        ({"layers": {"fc": 0.9}, "granularity": "2:4"}, "has sparsity 0.5 and no other"),
        ({"include": 3}, "include must be layer patterns"),
        ({"include": []}, "include must be layer patterns"),
    ],
)
def test_wrong_settings_raise(settings, message):
    with pytest.raises(ConfigError, match=message):
        PruningConfig(**settings).validated()


def test_n_of_m_takes_its_own_sparsity_or_zero_only():
    one_three = PruningConfig(granularity="1:3")
    assert one_three.check_target(0.6667) == 2 / 3
    assert one_three.check_target(0) == 0
    with pytest.raises(
        ConfigError, match=r"'1:3' has sparsity 0.6667 and no other, got sparsity=0"
    ):
        one_three.check_target(0.5)
    assert PruningConfig().check_target(0.5) == 0.5


def test_unreachable_minimum_raises():
    model = nn.Sequential(*(nn.Linear(2, 1) for _ in range(3)))
    assert math.prod(model[0].weight.shape) == 2
    for distribution in ("global", "uniform", "erk", "lamp"):
        with pytest.raises(ConfigError, match="4 of 6 cannot be pruned"):
            choose(model, PruningConfig(distribution=distribution), 0.67)


def test_lamp_tells_infinity_from_nan():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for value, words in ((float("inf"), "1.weight has 1 scores that are inf"), (math.nan, "NaN")):
        model[1].weight.data[0, 0] = value
        with pytest.raises(StateError, match=words):
            choose(model, PruningConfig(distribution="lamp"), 0.5)


@pytest.mark.parametrize("criterion", ["movement", Movement()])
def test_lamp_with_movement_raises_at_construction(criterion):
    with pytest.raises(ConfigError, match="those of movement are negative"):
        PruningConfig(criterion=criterion, distribution="lamp").validated()
