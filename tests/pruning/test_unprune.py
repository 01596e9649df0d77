# SPDX-License-Identifier: MIT
"""Un-pruning and regrowth restore removed values and moments exactly."""

import copy

import pytest
import torch
from torch import nn, optim

from regrow.io.integrity import with_digest
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import StateError

MAKERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5))


def step(model, optimizer, pruner, seed):
    inputs = torch.randn(8, 10, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    pruner.enforcer.gradients()
    optimizer.step()
    pruner.enforcer.weights()


def train(model, optimizer, pruner, seeds):
    for seed in seeds:
        step(model, optimizer, pruner, seed)


def picture(model, optimizer):
    """Bits of the prunable weights and of their moments, by name."""
    found = {}
    for name, p in model.named_parameters():
        if p.dim() > 1:
            found[name] = p.detach().clone()
            for key, value in optimizer.state.get(p, {}).items():
                if torch.is_tensor(value) and value.shape == p.shape:
                    found[f"{name} {key}"] = value.clone()
    return found


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key].view(torch.int32), other[key].view(torch.int32)) for key in one)


def made(kind, keep="moments"):
    model = network()
    optimizer = MAKERS[kind](model.parameters())
    return model, optimizer, Pruner(model, keep_removed=keep)


def two_events(kind, keep="moments"):
    """A run with two events; what each place was when it went, and is where it stayed."""
    model, optimizer, pruner = made(kind, keep)
    train(model, optimizer, pruner, range(3))
    first = picture(model, optimizer)
    pruner.prune_to(0.4, (o for o in [optimizer]))  # any iterable, asked once
    gone = pruner.masks
    train(model, optimizer, pruner, range(3, 6))
    second = picture(model, optimizer)
    pruner.prune_to(0.8, [optimizer])
    train(model, optimizer, pruner, range(6, 9))
    now = picture(model, optimizer)
    expected = {}
    for key, value in now.items():
        name = key.split()[0]
        later = torch.where(pruner.masks[name], value, second[key])
        expected[key] = torch.where(gone[name], later, first[key])
    return model, optimizer, pruner, expected


@pytest.mark.parametrize("kind", MAKERS)
def test_moments_are_restored_with_the_values(kind):
    model, optimizer, pruner, expected = two_events(kind)
    pruner.unprune(optimizers=[optimizer])
    assert same(picture(model, optimizer), expected)
    assert not pruner.state.removed_weights.values


@pytest.mark.parametrize("kind", MAKERS)
def test_moments_are_restored_by_regrowth(kind):
    model, optimizer, pruner, expected = two_events(kind)
    before, masks = picture(model, optimizer), pruner.masks
    pruner.regrow(0.5, init="removed", optimizers=[optimizer])
    half = picture(model, optimizer)
    for key, value in half.items():
        name = key.split()[0]
        back = pruner.masks[name] & ~masks[name]
        assert back.any()
        assert torch.equal(value[back], expected[key][back])
        assert torch.equal(value[~back], before[key][~back])
    pruner.unprune(optimizers=[optimizer])
    assert same(picture(model, optimizer), expected), "the rest of the vault is intact"


@pytest.mark.parametrize("init", ["he", "zero"])
def test_regrown_weights_with_new_values_have_zero_moments(init):
    model, optimizer, pruner, _ = two_events("adam")
    masks = pruner.masks
    pruner.regrow(0.5, init=init, optimizers=[optimizer])
    for key, value in picture(model, optimizer).items():
        name = key.split()[0]
        if key != name:
            assert not value[~masks[name]].any()


@pytest.mark.parametrize("kind", MAKERS)
def test_saved_pruner_restores_values_and_moments(kind):
    model, optimizer, pruner, expected = two_events(kind)
    state, weights = copy.deepcopy(pruner.state_dict()), copy.deepcopy(model.state_dict())
    model, other, again = made(kind)
    model.load_state_dict(weights)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(state)
    again.unprune(optimizers=[other])
    assert same(picture(model, other), expected)


def test_moments_stay_zero_if_only_values_are_stored():
    model, optimizer, pruner, expected = two_events("adam", keep=True)
    masks = pruner.masks
    pruner.unprune(optimizers=[optimizer])
    for key, value in picture(model, optimizer).items():
        name = key.split()[0]
        if key == name:
            assert torch.equal(value, expected[key])
        else:
            assert not value[~masks[name]].any()


def test_a_change_without_optimizers_leaves_no_stale_moments():
    """Without optimizers, stored moments still follow the masks."""
    for change in (
        lambda pruner: pruner.unprune("0"),
        lambda pruner: pruner.regrow(0.5),
        lambda pruner: pruner.prune_to(0.9),
        lambda pruner: pruner.prune_to(0),
    ):
        model, optimizer, pruner, expected = two_events("adam")
        masks = pruner.masks
        change(pruner)
        other = Pruner(model, keep_removed="moments")
        other.load_state_dict(copy.deepcopy(pruner.state_dict()))
        live = pruner.masks
        before = picture(model, optimizer)
        pruner.unprune(optimizers=[optimizer])
        for key, value in picture(model, optimizer).items():
            name = key.split()[0]
            wanted = torch.where(live[name], before[key], expected[key])
            if key != name:  # nobody showed the moments of what went just now
                wanted[masks[name] & ~live[name]] = 0
            assert torch.equal(value, wanted), "live weights keep their moments"


def test_moments_pruned_again_are_restored_as_of_the_last_event():
    model, optimizer, pruner, _ = two_events("sgd")
    pruner.unprune()
    train(model, optimizer, pruner, range(9, 12))
    expected = picture(model, optimizer)
    pruner.prune_to(0.8, [optimizer])
    pruner.unprune(optimizers=[optimizer])
    assert same(picture(model, optimizer), expected)


def test_weight_in_two_optimizers_gets_both_moments_back():
    model = network()
    both = [MAKERS["adam"](model.parameters()), MAKERS["adam"](model.parameters())]
    pruner = Pruner(model, keep_removed="moments")
    for number, optimizer in enumerate(both):
        train(model, optimizer, pruner, [number])
    expected = [picture(model, optimizer) for optimizer in both]
    pruner.prune_to(0.7, both)
    pruner.unprune(optimizers=both)
    assert all(same(picture(model, o), e) for o, e in zip(both, expected, strict=True))


def test_weight_of_the_second_event_has_its_value_before_that_event():
    model = network()
    pruner = Pruner(model, keep_removed=True)
    pruner.prune_to(0.4)
    first = pruner.masks
    with torch.no_grad():
        for name in first:
            model.get_parameter(name).add_(first[name] * 1.0)
    second = {name: model.get_parameter(name).detach().clone() for name in first}
    pruner.prune_to(0.8)
    pruner.unprune()
    for name, mask in first.items():
        assert torch.equal(model.get_parameter(name)[mask], second[name][mask])


def test_original_values_regrow_after_remember_original():
    model = network()
    start = copy.deepcopy(model.state_dict())
    optimizer, pruner = MAKERS["sgd"](model.parameters()), Pruner(model)
    pruner.prune_to(0.5)
    with pytest.raises(StateError, match=r"call remember_original\(\)"):
        pruner.regrow(0.5, init="original")
    pruner.prune_to(0)
    model.load_state_dict(start)
    pruner.remember_original()
    train(model, optimizer, pruner, range(3))
    pruner.prune_to(0.5)
    masks, state = pruner.masks, copy.deepcopy(pruner.state_dict())
    pruner.load_state_dict(state)
    pruner.regrow(1, init="original")
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name)[~mask], start[name][~mask])


def test_state_that_does_not_fit_raises_and_changes_nothing():
    _, _, pruner, _ = two_events("adam")
    state = copy.deepcopy(pruner.state_dict())
    state = with_digest(
        state | {"removed_weights": state["removed_weights"] | {"0.weight::exp_avg": torch.ones(3)}}
    )
    model = network()
    other = Pruner(model, keep_removed="moments")
    other.prune_to(0.3)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(StateError, match=r"3 removed values of 0\.weight::exp_avg"):
        other.load_state_dict(state)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert other.sparsity == 0.3
    other.unprune()
    assert (model[0].weight != 0).all()


def test_stored_moments_load_into_a_pruner_that_keeps_values_only():
    """Saved with moments, loaded by a pruner that keeps values alone: they still follow."""
    model, optimizer, pruner, _ = two_events("adam")
    other = Pruner(model, keep_removed=True)
    other.load_state_dict(copy.deepcopy(pruner.state_dict()))
    other.prune_to(0.9, [optimizer])
    third = Pruner(model, keep_removed="moments")
    third.load_state_dict(copy.deepcopy(other.state_dict()))
    assert third.sparsity == pytest.approx(0.9)
