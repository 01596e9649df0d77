# SPDX-License-Identifier: MIT
"""Frozen weights stay exactly unchanged under every optimizer; the others train."""

import copy

import pytest
import torch
from torch import nn, optim

from regrow.pruning.config import PruningConfig
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import ConfigError, StateError

MAKERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rprop": lambda p: optim.Rprop(p),
    "adamax": lambda p: optim.Adamax(p),
    "lbfgs": lambda p: optim.LBFGS(p, lr=0.1, max_iter=4),
}


def made(kind="sgd"):
    """A network that was trained and pruned, so that the optimizer has momentum."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Tanh(), nn.Linear(20, 5))
    optimizer = MAKERS[kind](model.parameters())
    pruner = Pruner(model, keep_removed=True)
    pruner.enforcer.hook(optimizer, gradients=True)
    train(model, optimizer, 2)
    pruner.prune_to(0.8, [optimizer])
    train(model, optimizer, 1)
    return model, optimizer, pruner


def train(model, optimizer, steps):
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        inputs = torch.randn(8, 10, generator=generator)

        def closure(inputs=inputs):
            optimizer.zero_grad()
            loss = model(inputs).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)


def bits(model):
    return {name: p.detach().view(torch.int32).clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", MAKERS)
def test_other_weights_are_frozen_while_regrown_weights_train(kind):
    model, optimizer, pruner = made(kind)
    masks = pruner.masks
    pruner.regrow(0.5, train="regrown", optimizers=[optimizer])
    before = bits(model)
    train(model, optimizer, 3)
    moved = 0
    for name, old in before.items():
        new = bits(model)[name]
        back = pruner.masks[name] & ~masks[name] if name in masks else torch.zeros_like(old).bool()
        assert torch.equal(new[~back], old[~back]), name
        moved += int((new[back] != old[back]).sum())
    assert moved > 0.5 * pruner.history[-1]["count"]
    assert pruner.history[-1]["train"] == "regrown"


@pytest.mark.parametrize("kind", MAKERS)
def test_patterns_select_which_parameters_train(kind):
    model, optimizer, pruner = made(kind)
    pruner.regrow(0.5, train=["3", "1.bias"], optimizers=[optimizer])
    before = bits(model)
    train(model, optimizer, 2)
    after = bits(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"3.weight", "3.bias", "1.bias"}
    assert not after["3.weight"][~pruner.masks["3.weight"]].any()


def test_all_weights_train_after_freezing_ends():
    model, optimizer, pruner = made()
    pruner.regrow(0.5, train="regrown", optimizers=[optimizer])
    train(model, optimizer, 1)
    pruner.regrow(count=0, train="all", optimizers=[optimizer])
    before = bits(model)
    train(model, optimizer, 1)
    for name, new in bits(model).items():
        mask = pruner.masks[name] if name in pruner.masks else torch.ones_like(new).bool()
        assert (new[mask] != before[name][mask]).all()
    assert pruner.state.freezer.free is None
    assert pruner.enforcer.before_step == pruner.enforcer.after_step == []


def test_freezing_keeps_values_written_between_steps():
    """Un-pruning and direct writes to frozen weights are not undone by the next step."""
    model, optimizer, pruner = made()
    pruner.regrow(0.2, train="regrown", optimizers=[optimizer])
    train(model, optimizer, 1)
    pruner.unprune(optimizers=[optimizer])
    with torch.no_grad():
        model[0].bias.fill_(3)
    free = pruner.state.freezer.free
    before = bits(model)
    train(model, optimizer, 2)
    for name, new in bits(model).items():
        assert torch.equal(new[~free[name]], before[name][~free[name]])
    assert (model[0].bias == 3).all()


def test_pruning_continues_while_weights_are_frozen():
    model, optimizer, pruner = made()
    pruner.regrow(0.5, train="regrown", optimizers=[optimizer])
    pruner.prune_to(0.9, [optimizer])
    train(model, optimizer, 2)
    assert pruner.sparsity == 0.9
    for name, mask in pruner.masks.items():
        assert not bits(model)[name][~mask].any()


def test_skipped_step_leaves_no_copy_behind():
    """A scaler that overflows calls no hook after the step."""
    model, optimizer, pruner = made()
    pruner.regrow(0.5, train="regrown", optimizers=[optimizer])
    pruner.enforcer.prepare()
    pruner.flush_dense()
    with torch.no_grad():
        model[0].bias.fill_(3)
    train(model, optimizer, 1)
    assert (model[0].bias == 3).all()


def test_nan_gradients_of_frozen_weights_become_zero():
    model, optimizer, pruner = made()
    masks = pruner.masks
    pruner.regrow(0.5, train="regrown", optimizers=[optimizer])
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    pruner.enforcer.prepare()
    for name, p in model.named_parameters():
        back = pruner.masks[name] & ~masks[name] if name in masks else torch.zeros_like(p).bool()
        assert not p.grad[~back].any()
        assert p.grad[back].isnan().all()


def test_freezing_continues_after_loading():
    """An interrupted run resumes exactly."""
    model, optimizer, pruner = made()
    pruner.regrow(0.5, train="regrown", optimizers=[optimizer])
    train(model, optimizer, 1)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), pruner.state_dict()))
    train(model, optimizer, 2)
    again, other, second = made()
    for thing, state in zip((again, other, second), saved, strict=True):
        thing.load_state_dict(state)
    train(again, other, 2)
    assert all(torch.equal(bits(again)[name], new) for name, new in bits(model).items())
    torch.save(saved[2], (path := "/dev/null"))
    assert path, "tensors and builtin types only"
    packed = saved[2]["train"]["bits"]
    assert all(t.dtype == torch.uint8 for t in packed.values()), "a bit a weight"


def test_state_of_another_model_raises():
    _, optimizer, pruner = made()
    pruner.regrow(0.5, train="0", optimizers=[optimizer])
    state = pruner.state.freezer.state_dict()
    other = Pruner(nn.Sequential(nn.Linear(10, 20)))
    with pytest.raises(StateError, match=r"1\.weight is masked but not selected"):
        other.state.freezer.load_state_dict(state)


def test_wrong_arguments_raise_before_anything_changes():
    model, _, pruner = made()
    before, masks = bits(model), pruner.masks.digest()
    for train_, words in (
        ("regrow", r"neither 'all' nor 'regrown'.*nearest are regrown"),
        ("4.weight", r"matches no parameter: nearest are"),
        ([], "train must be"),
        (3, "train must be"),
    ):
        with pytest.raises(ConfigError, match=words):
            pruner.regrow(0.5, train=train_)
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        pruner.regrow(count=0, train="regrown")
    assert pruner.masks.digest() == masks
    assert all(torch.equal(before[name], new) for name, new in bits(model).items())


def test_shared_and_compiled_names_are_found():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    pruner = Pruner(torch.compile(model, backend="eager"), PruningConfig(include=["0.weight"]))
    pruner.prune_to(0.5)
    pruner.regrow(0.5, train="1.weight")
    assert {name for name, mask in pruner.state.freezer.free.items() if mask.all()} == {"0.weight"}
