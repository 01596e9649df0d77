# SPDX-License-Identifier: MIT
"""Regrowth: exact counts, at the places of the criterion, and no other weight changes."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regrow.masks.targets import Target
from regrow.pruning.config import PruningConfig
from regrow.pruning.growth import GROWTHS, get_growth_criterion, gradient_growth
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import ConfigError, StateError


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 5))


def bits(tensor):
    return tensor.detach().view(torch.int32).clone()


def state(model):
    return {name: bits(p) for name, p in model.named_parameters()}


growths = st.sampled_from(["random", "gradient", "momentum", "removed", "custom"])
inits = st.sampled_from(
    ["zero", "removed", "original", "he", "sparse_he", "xavier", "survivors", "kaiming_normal"]
)


def own_rule(target, momentum, removed, generator):
    return torch.arange(target.parameter.numel()).view(target.parameter.shape).float()


@given(st.integers(0, 99), st.floats(0.05, 0.9), st.floats(0, 1), growths, inits, st.data())
def test_only_regrown_weights_change(seed, sparsity, fraction, by, init, data):
    model = network(seed)
    pruner = Pruner(model, keep_removed=True)
    pruner.remember_original()
    pruner.prune_to(sparsity)
    for target in pruner.targets:
        target.parameter.grad = torch.randn(target.parameter.shape)
        pruner.state.momenta[target.name] = torch.randn(target.parameter.shape)
    names = data.draw(st.sampled_from([None, "0", ["2.weight"]]))
    chosen = [t.name for t in pruner.targets if names is None or t.name[0] == names[0][0]]
    before, masks, pruned = state(model), pruner.masks, pruner.pruned
    free = sum(int((~masks[name]).sum()) for name in chosen)
    rule = own_rule if by == "custom" else by
    entry = pruner.regrow(fraction, by=rule, init=init, names=names)
    count = round(fraction * free)
    assert pruner.pruned == entry["pruned"] == pruned - count
    assert entry["count"] == count
    assert (entry["kind"], entry["by"]) == ("regrow", "own_rule" if by == "custom" else by)
    after = pruner.masks
    for name, old in before.items():
        new = bits(model.get_parameter(name))
        if name not in after:
            assert torch.equal(new, old), "biases are nobody's business"
            continue
        back = after[name] & ~masks[name]
        assert not (masks[name] & ~after[name]).any(), "nothing goes"
        assert name in chosen or not back.any()
        assert torch.equal(new[~back], old[~back])
        assert not new[~after[name]].any()
    assert sum(int((after[n] & ~masks[n]).sum()) for n in after) == count


@given(st.integers(0, 99), st.integers(0, 60))
def test_highest_scores_regrow_as_in_numpy(seed, count):
    """Against a stable sort in NumPy over both layers; ties by order, the later place first."""
    model = network(seed)
    pruner = Pruner(model)
    pruner.prune_to(0.7)
    generator = torch.Generator().manual_seed(seed)
    for target in pruner.targets:  # few values: many ties
        shape = target.parameter.shape
        target.parameter.grad = torch.randint(-3, 4, shape, generator=generator).float()
    scores = np.concatenate([t.parameter.grad.abs().numpy().ravel() for t in pruner.targets])
    gone = np.concatenate([(~pruner.masks[t.name]).numpy().ravel() for t in pruner.targets])
    order = [place for place in np.argsort(scores, kind="stable") if gone[place]]
    expected = ~gone
    expected[order[len(order) - count :]] = True
    pruner.regrow(count=count, by="gradient")
    found = np.concatenate([pruner.masks[t.name].numpy().ravel() for t in pruner.targets])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("init", ["he", "survivors", "xavier"])
def test_random_growth_is_reproducible(init):
    """Whatever was drawn before; another seed or event draws otherwise."""

    def run(drawn, seed=0, events=0):
        model = network()
        pruner = Pruner(model, PruningConfig(seed=seed), keep_removed=True)
        pruner.prune_to(0.7)
        for _ in range(events):
            pruner.prune_to(0.7)
        torch.manual_seed(drawn)
        before = torch.get_rng_state()
        pruner.regrow(0.3, init=init)
        assert torch.equal(before, torch.get_rng_state()), "the global stream is left alone"
        return pruner.masks.digest(), [w.tolist() for w in model.parameters()]

    assert run(1) == run(2)
    assert run(1) != run(1, seed=5)
    assert run(1)[0] != run(1, events=1)[0]


def test_dense_layer_needs_no_scores():
    """Neither gradients nor removed values are asked of a layer that is not pruned."""
    for by in ("removed", "gradient"):
        model = network()
        pruner = Pruner(model, PruningConfig(layers={"0": 0.0}), keep_removed=True)
        pruner.prune_to(0.5)
        assert pruner.densities["0.weight"] == 1
        model[2].weight.grad = torch.ones(5, 24)
        pruner.regrow(0.5, by=by, init="removed")
        assert pruner.pruned == 30
    assert Pruner(network()).regrow(0.5)["count"] == 0, "half of nothing"


def test_missing_input_of_a_growth_criterion_raises():
    pruner = Pruner(network())
    pruner.prune_to(0.5)
    for by, words in {
        "gradient": "has no gradient to grow by: it may be frozen or unused in the loss",
        "momentum": "no running mean of dense gradients.*it may be frozen or unused in the loss",
        "removed": "write keep_removed=True",
    }.items():
        with pytest.raises(StateError, match=words):
            pruner.regrow(0.5, by=by)
    with pytest.raises(StateError, match=r"of shape \(6, 1, 3, 3\) for 0.weight, got .*\(3,\)"):
        pruner.regrow(0.5, by=lambda *_: torch.ones(3))
    with pytest.raises(StateError, match=r"values of shape \(6, 1, 3, 3\), got \(3,\)"):
        pruner.regrow(0.5, init=lambda back: torch.ones(3))
    with pytest.raises(StateError, match=r"0\.weight has 54 NaN scores|NaN scores"):
        pruner.regrow(0.5, by=lambda t, *_: torch.full_like(t.parameter, float("nan")))
    assert len(pruner.history) == 1


def test_growth_by_masked_gradients_raises():
    model = network()
    pruner = Pruner(model)
    pruner.prune_to(0.5)
    model(torch.randn(3, 2, 4, 4)).sum().backward()
    pruner.enforce()
    with pytest.raises(StateError, match="masked already"):
        pruner.regrow(0.5, by="gradient")


def test_wrong_arguments_raise_and_change_nothing():
    model = network()
    pruner = Pruner(model)
    pruner.prune_to(0.5)
    before, masks = state(model), pruner.masks.digest()
    for wrong, words in (
        ({}, "one of the two"),
        ({"fraction": 0.1, "count": 3}, "one of the two"),
        ({"fraction": 50}, "write 0.5 for 50 %"),
        ({"fraction": True}, "must be a number"),
        ({"count": -1}, "whole number of at least 0"),
        ({"count": 10**6}, "cannot come back"),
        ({"fraction": 0.1, "by": "gradeint"}, "did you mean 'gradient'"),
        ({"fraction": 0.1, "by": 3}, "a name or a callable"),
        ({"fraction": 0.1, "init": "heh"}, "did you mean"),
        ({"fraction": 0.1, "names": "fc"}, "matches no parameter"),
    ):
        with pytest.raises(ConfigError, match=words):
            pruner.regrow(**wrong)
    after = state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (pruner.masks.digest(), len(pruner.history)) == (masks, 1)


def test_growth_criteria_are_given_by_name_or_callable():
    assert get_growth_criterion("gradient") is GROWTHS["gradient"] is gradient_growth
    weight = nn.Parameter(torch.zeros(3))
    target = Target("w", weight)
    for growth in GROWTHS.values():
        weight.grad = torch.tensor([-1.0, 2.0, 0.0])
        scores = growth(target, weight.grad, weight.grad, torch.Generator())
        assert scores.shape == (3,)
        assert (scores >= 0).all()


def test_regrowing_all_removed_values_restores_the_dense_model():
    model = network()
    before = copy.deepcopy(model.state_dict())
    pruner = Pruner(model, keep_removed=True)
    pruner.prune_to(0.9)
    pruner.regrow(1, init="removed")
    assert pruner.sparsity == 0
    assert not pruner.state.removed_weights.values
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
