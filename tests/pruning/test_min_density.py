# SPDX-License-Identifier: MIT
"""A floor for each layer under global ranking, and a warning where a layer keeps nearly nothing."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow import ConfigError, MagnitudePruning, Pruner, StateError
from regrow.pruning.config import PruningConfig

SIZES = {"0.weight": 2000, "1.weight": 1600, "2.weight": 400}


def network():
    """The first layer has by far the smallest weights, so that global ranking empties it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 40), nn.Linear(40, 10))
    with torch.no_grad():
        net[0].weight.mul_(1e-3)
    return net


def reference(net, pruned, floor):
    """NumPy: reserve the largest `floor` of each layer, then prune the smallest of the rest."""
    scores = {}
    for name, size in SIZES.items():
        flat = np.abs(net.get_parameter(name).detach().numpy()).ravel()
        least = max(1, math.ceil(floor * size))
        flat = flat.copy()
        flat[np.argsort(flat)[size - least :]] = np.inf
        scores[name] = flat
    together = np.concatenate([*scores.values()])
    kept = np.ones(len(together), bool)
    kept[np.argsort(together, kind="stable")[:pruned]] = False
    return dict(zip(SIZES, np.split(kept, np.cumsum([*SIZES.values()])[:-1]), strict=True))


@pytest.mark.parametrize("floor", [0.01, 0.02, 0.05, 0.1])
def test_global_ranking_with_a_floor_equals_numpy(floor):
    net = network()
    expected = reference(net, 3600, floor)
    masks = regrow.prune(net, 0.9, min_density=floor)
    assert masks.pruned == 3600
    for name, mask in masks.items():
        assert np.array_equal(mask.numpy().ravel(), expected[name])
        assert masks.density(name) >= floor


def test_a_floor_holds_at_every_event():
    pruner = Pruner(network(), PruningConfig(min_density=0.05))
    for sparsity in (0.3, 0.5, 0.8, 0.95):
        pruner.prune_to(sparsity)
        assert pruner.pruned == round(sparsity * 4000)
        assert min(pruner.densities.values()) >= 0.05


@pytest.mark.parametrize("distribution", ["uniform", "erk", "lamp"])
def test_other_distributions_keep_the_floor(distribution):
    masks = regrow.prune(network(), 0.9, distribution=distribution, min_density=0.08)
    assert masks.pruned == 3600
    assert all(masks.density(name) >= 0.08 for name in masks)


def test_n_of_m_keeps_the_floor():
    """2:4 at 0.4: four of five groups are pruned; a floor of 0.55 leaves a tenth of each layer."""
    net = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    with torch.no_grad():
        net[0].weight.mul_(1e-3)
    pruner = Pruner(net, PruningConfig(granularity="2:4", min_density=0.55))
    pruner.prune_to(0.4)
    assert pruner.pruned == round(0.4 * 3200)
    assert pruner.densities["0.weight"] == pytest.approx(0.55, abs=1e-9)


def test_layer_target_may_be_below_the_floor():
    config = PruningConfig(min_density=0.2, layers={"1": 0.95})
    pruner = Pruner(network(), config)
    pruner.prune_to(0.5)
    assert pruner.densities["1.weight"] == pytest.approx(0.05)


def test_earlier_masks_may_be_below_the_floor():
    net = network()
    pruner = Pruner(net, PruningConfig(min_density=0.2))
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[:, 0] = True
    ones = {name: torch.ones_like(net.get_parameter(name)).bool() for name in SIZES}
    pruner.set_masks({**ones, "0.weight": mask})
    pruner.prune_to(0.7)
    assert pruner.pruned == 2800
    assert pruner.densities["0.weight"] == pytest.approx(0.02)


def test_floor_that_makes_the_target_unreachable_raises():
    with pytest.raises(ConfigError, match="min_density"):
        regrow.prune(network(), 0.9, min_density=0.2)
    with pytest.raises(ConfigError, match=r"min_density must be in \[0, 1\)"):
        MagnitudePruning(0.9, min_density=2)


def test_resume_with_another_floor_raises():
    old = PruningConfig(min_density=0.1).validated().to_dict()
    PruningConfig(min_density=0.1).validated().check_matches(old)
    for other in (PruningConfig(), PruningConfig(min_density=0.2)):
        with pytest.raises(StateError, match=r"min_density=0\.1"):
            other.validated().check_matches(old)
    with pytest.raises(StateError, match=r"min_density=0, now 0\.1"):
        PruningConfig(min_density=0.1).validated().check_matches(
            PruningConfig().validated().to_dict()
        )


def test_nearly_empty_layer_is_named_in_a_warning():
    with pytest.warns(UserWarning, match=r"0\.weight \(1 of 2,000\).*min_density=") as seen:
        regrow.prune(network(), 0.9)
    assert len([w for w in seen if "min_density" in str(w.message)]) == 1


def test_nearly_empty_layer_is_named_once():
    pruner = Pruner(network())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for sparsity in (0.4, 0.6, 0.8, 0.9):
            pruner.prune_to(sparsity)
    assert len([w for w in seen if "min_density" in str(w.message)]) == 1


@pytest.mark.filterwarnings("error")
def test_requested_low_density_causes_no_warning():
    masks = regrow.prune(network(), 0.9, min_density=0.01)  # as the warning advises
    assert int(masks["0.weight"].sum()) == 20  # of 2,000
    for masks in (
        regrow.prune(network(), 0.995, distribution="uniform"),
        regrow.prune(network(), 0.4, layers={"0": 0.999}),
    ):
        assert masks["0.weight"].float().mean() < 0.01  # else nothing was to be named
