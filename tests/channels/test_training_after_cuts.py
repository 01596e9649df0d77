# SPDX-License-Identifier: MIT
"""Training through masks and cuts equals training of the small model built by hand."""

import copy
from functools import partial

import pytest
import torch
from hand_cut_network import INPUT, PLACES, inputs, net, output, pruner, taken, train
from torch import nn, optim

from regrow import ChannelPruner
from regrow.channels.config import ChannelConfig

OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam": partial(optim.Adam, lr=0.01),
    "adamw": partial(optim.AdamW, lr=0.01, weight_decay=0.1),
}


def rebuilt(model, optimizer, removed, make):
    """The small model built by hand, with slices of the parameters and of their moments."""
    kept = {n: torch.tensor([c for c in range(s) if c not in removed[n]])
            for n, s in (("0", 12), ("3", 8))}  # fmt: skip
    a, b = len(kept["0"]), len(kept["3"])
    small = nn.Sequential(nn.Linear(6, a), nn.BatchNorm1d(a), nn.Sigmoid(), nn.Linear(a, b),
                          nn.ReLU(), nn.Linear(b, 3)).double()  # fmt: skip
    places = {n: dims | {"1.running_mean": 0, "1.running_var": 0} if n == "0" else dims
              for n, dims in PLACES.items()}  # fmt: skip

    def sliced(name, tensor):
        for group, dims in places.items():
            if name in dims and tensor.ndim:
                tensor = taken(tensor, dims[name], kept[group])
        return tensor.clone()

    small.load_state_dict({n: sliced(n, t) for n, t in model.state_dict().items()})
    other = make(small.parameters())
    state = copy.deepcopy(optimizer.state_dict())
    for number, (name, _) in enumerate(model.named_parameters()):
        entries = state["state"][number]
        state["state"][number] = {
            k: sliced(name, v) if torch.is_tensor(v) else v for k, v in entries.items()
        }
    other.load_state_dict(state)
    return small, other


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_continues_like_the_small_model_built_by_hand(kind):
    make = OPTIMIZERS[kind]
    model = net()
    optimizer = make(model.parameters())
    made = pruner(model)
    made.enforcer.hook(optimizer)
    train(model, optimizer, made)
    made.prune_to(0.5, [optimizer])
    train(model, optimizer, made)
    model(inputs()).sum().backward()
    small, other = rebuilt(model, optimizer, made.removed, make)
    made.compact([optimizer])
    cut = [p for n, p in model.named_parameters() if n != "5.bias"]
    assert all(p.grad is None for p in cut)
    assert model[0].weight.shape == small[0].weight.shape
    train(model, optimizer, made, 5)
    train(small, other, None, 5)
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    for a, b in zip(model.parameters(), small.parameters(), strict=True):
        for key, value in other.state[b].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(optimizer.state[a][key]))


def test_autograd_graph_of_the_old_shapes_does_not_break_backward():
    model = net()
    old = model(inputs()).sum()  # holds the gradient accumulators of the old shapes
    made = pruner(model)
    made.prune_to(0.5)
    made.compact()
    model(inputs()).sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())
    del old


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_zero_is_zero_after_every_step(kind):
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    made = pruner(model)
    made.enforcer.hook(optimizer)
    train(model, optimizer, made)
    for sparsity in (0.3, 0.6):
        made.prune_to(sparsity, [optimizer])
        for _ in range(3):
            train(model, optimizer, made, 1)
            for name, gone in made.removed.items():
                for member, dim in PLACES[name].items():
                    parameter = dict(model.named_parameters())[member]
                    tensors = [parameter, *optimizer.state[parameter].values()]
                    for tensor in tensors:
                        if torch.is_tensor(tensor) and tensor.ndim:
                            assert not taken(tensor.detach(), dim, gone).any(), member


@pytest.mark.parametrize(
    "make",
    [
        partial(optim.Adafactor, lr=0.01),
        partial(optim.LBFGS, lr=0.1, max_iter=3),
        partial(optim.Rprop, lr=0.01),
    ],
)
def test_factored_optimizer_state_is_reset(make):
    model = net()
    optimizer = make(model.parameters())
    made = pruner(model)
    made.enforcer.hook(optimizer)

    def step():
        def closure():
            optimizer.zero_grad()
            loss = model(inputs()).square().sum()
            loss.backward()
            made.enforcer.prepare()
            return loss

        optimizer.step(closure)

    step()
    for act in (made.compact, made.expand):
        made.prune_to(0.5, [optimizer])
        act([optimizer])
        before = output(model)
        step()
        assert not torch.equal(output(model), before)


def test_freezing_follows_the_cut():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    made = pruner(model)
    made.remember_original()
    made.enforcer.hook(optimizer)
    made.prune_to(0.6)
    made.regrow(count=3, train="regrown")
    regrown = {name: set(c.tolist()) for name, c in made.removed.items()}
    made.prune_to(0.7)
    free = sum(int(places.sum()) for places in made.state.freezer.free.values())
    made.compact([optimizer])
    assert 0 < sum(int(places.sum()) for places in made.state.freezer.free.values()) <= free
    start = copy.deepcopy(dict(model.named_parameters()))
    train(model, optimizer, made, 3)
    moved = 0
    for name, parameter in model.named_parameters():
        places = made.state.freezer.free[name]
        assert torch.equal(parameter[~places], start[name][~places])
        moved += int((parameter != start[name]).sum())
    assert moved
    assert regrown
    made.prune_to(0.8)
    made.regrow(count=1, init="original")
    made.expand()
    assert made.state.freezer.free is None
    train(model, optimizer, made)


class Scaled(nn.Module):
    """A buffer whose channels are not its first dimension, and that is no statistic of a norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(8, 3)
        self.register_buffer("scale", torch.rand(1, 8, 1, 1) + 0.5)

    def forward(self, x):
        return self.head((self.conv(x) * self.scale).relu().mean((2, 3)))


def test_buffers_of_any_shape_are_restored():
    torch.manual_seed(0)
    model, x = Scaled(), torch.randn(4, 2, 5, 5)
    before, scale, whole = model(x).detach(), model.scale.clone(), copy.deepcopy(model)
    made = ChannelPruner(model, x)
    made.prune_to(0.5)
    made.unprune()
    assert torch.equal(model(x), before)
    made.prune_to(0.5)
    made.regrow(1.0)
    assert torch.equal(model.scale, scale)
    made.load_state_dict(ChannelPruner(whole, x).state_dict())
    model.load_state_dict(whole.state_dict())
    made.prune_to(0.5)
    made.compact()
    assert model.scale.shape == (1, 4, 1, 1)
    made.expand()
    assert torch.equal(model.scale, scale)
    assert torch.equal(model(x), before)


def test_repeated_cuts_reach_one_channel():
    model = net()
    made = ChannelPruner(model, INPUT, ChannelConfig(distribution="uniform"))
    for sparsity, left in ((0.5, 10), (0.85, 3), (0.9, 2)):
        made.prune_to(sparsity)
        made.compact()
        assert model[0].out_features + model[3].out_features <= left
        assert made.sparsity == pytest.approx(
            1 - (model[0].out_features + model[3].out_features) / 20
        )
    train(model, torch.optim.SGD(model.parameters(), 0.1))
    other = net(1)
    again = pruner(other, distribution="uniform")
    again.load_state_dict(made.state_dict())
    assert again.sparsity == made.sparsity
    again.expand()
    assert other[0].out_features == 12


@pytest.mark.parametrize("cut", [True, False])
def test_rounding_follows_the_original_width(cut):
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    made = ChannelPruner(model, torch.zeros(2, 4))
    for sparsity, left in ((0.4, 32), (0.55, 16)):
        made.prune_to(sparsity)
        if cut:
            made.compact()
        assert 64 - round(made.sparsity * 64) == left
