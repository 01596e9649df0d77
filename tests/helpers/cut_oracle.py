# SPDX-License-Identifier: MIT
"""A reference for cuts that does not use the code under test.

All parameters hold different numbers, so those that a cut removes are known by their values. Zeroed
in the original model they must give the same outputs; and a model whose channels have changed
places within a group must compute what it did before.
"""

import copy

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import groups_from_trace
from regrow.channels.graph.trace import trace

TOLERANCE = 1e-9


class Net(nn.Module):
    """A network of some layers and a function `(net, *inputs) -> outputs`."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, nn.Parameter(layer) if isinstance(layer, torch.Tensor) else layer)

    def forward(self, *inputs, **named):
        return self.run(self, *inputs, **named)


def distinct(model, seed=0):
    """The model in float64, every float its own: no two parameters hold the same number."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4 + 0.1)
            parameter += torch.rand(parameter.shape, generator=generator, dtype=torch.float64) / 9
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def noise(x):
    """Random floats of the same shapes; whole numbers as they are."""
    generator = torch.Generator().manual_seed(1)

    def drawn(t):
        return torch.randn(t.shape, generator=generator, dtype=t.dtype)

    return tree_map(lambda t: drawn(t) if t.is_floating_point() else t, x)


def outputs(model, x):
    with torch.no_grad():
        if isinstance(x, dict):
            found = model(**x)
        else:
            found = model(*x) if isinstance(x, tuple) else model(x)
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]


def assert_close(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= TOLERANCE * max(1.0, float(other.abs().max()))


def zeroed(original, cut):
    """The original with zeros for all numbers that the cut model does not hold any more."""
    model = copy.deepcopy(original)
    small = dict(cut.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter *= torch.isin(parameter, small[name])
    return model


def permuted(original, group, order):
    """The original with channel `order[i]` of a group in the place of channel `i`."""
    model = copy.deepcopy(original)
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for (name, dim), channels in group.members.items():
            index = torch.arange(len(channels))
            places = [(channels == c).nonzero().flatten() for c in range(group.size)]
            for channel, taken in enumerate(order.tolist()):
                index[places[channel]] = places[taken]
            held[name].copy_(held[name].index_select(dim, index))
    return model


def alike(group):
    """Whether all channels have equally many positions: only then can they be permuted."""
    counts = [channels[channels >= 0].bincount() for channels in group.members.values()]
    return all(len(count.unique()) == 1 for count in counts)


def half(groups, seed=0):
    """Half of the channels, at random, of each group that can be cut."""
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randperm(group.size, generator=generator)[: group.size // 2].sort().values
        for group in groups
        if not group.fixed_reason and group.size > 1
    }


def check(model, x, sizes, approximate=(), refused=()):
    """Finds the groups, cuts half of each one, compares; returns groups and a cut copy.

    Args:
        model: The network.
        x: A batch; random numbers take the place of its floats.
        sizes: How many channels each group must have that can be cut, by hand.
        approximate: Those of them whose zeroed channels would count.
        refused: Those of them that do not hold when they are tried.
    """
    model, x = distinct(copy.deepcopy(model)), noise(x)
    traced = trace(model, x)
    groups = groups_from_trace(traced, model)
    free = [group for group in groups if not group.fixed_reason and group.size > 1]
    assert {group.name: group.size for group in free} == sizes
    assert {group.name for group in free if group.approximate_reasons} == {*approximate}
    before = outputs(model, x)
    for group in filter(alike, free):
        order = torch.arange(group.size).roll(1)
        assert_close(outputs(permuted(model, group, order), x), before)
    original, removed = copy.deepcopy(model), half(groups)
    found = TrialCut(model, traced, groups, x).find_valid(removed)
    assert {*found.failed} == {*refused}, found.failed
    smaller = sum(p.numel() for p in model.parameters())
    assert {*sizes} == {*refused} or smaller < sum(p.numel() for p in original.parameters())
    after = outputs(model, x)
    assert [t.shape for t in after] == [t.shape for t in before]
    if {*approximate} <= {*refused}:
        assert_close(after, outputs(zeroed(original, model), x))
    return groups, model
