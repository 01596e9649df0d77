# SPDX-License-Identifier: MIT
"""Randomly composed blocks: a cut network computes what the masked one does, or nothing is cut."""

import copy

import torch
from cut_oracle import alike, assert_close, distinct, half, noise, outputs, permuted, zeroed
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from regrow.channels import prune
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import groups_from_trace
from regrow.channels.graph.trace import trace
from regrow.utils.errors import ConfigError

X = noise(torch.zeros(2, 3, 6, 6, dtype=torch.float64))


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Concat(nn.Module):
    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([x, *(branch(x) for branch in self.branches)], 1)


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.gate(x)


class Halves(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.branch = nn.Conv2d(width // 2, width // 2, 1)

    def forward(self, x):
        kept, changed = x.chunk(2, 1)
        x = torch.stack([kept, self.branch(changed)], 2)
        return x.flatten(1, 2)  # shuffled


def conv(before, after, **more):
    return nn.Conv2d(before, after, 3, padding=1, **more)


# (width before) -> (layer, width after)
BLOCKS = {
    "conv": lambda w: (conv(w, 8), 8),
    "wide": lambda w: (nn.Conv2d(w, 12, 1, bias=False), 12),
    "norm": lambda w: (nn.Sequential(nn.BatchNorm2d(w), nn.ReLU()), w),
    "act": lambda w: (nn.Sigmoid(), w),
    "depthwise": lambda w: (conv(w, w, groups=w), w),
    "grouped": lambda w: (conv(w, w, groups=2), w),
    "small groups": lambda w: (conv(w, w, groups=w // 2), w),
    "residual": lambda w: (Residual(nn.Sequential(conv(w, 6), nn.ReLU(), conv(6, w))), w),
    "dense": lambda w: (Concat(conv(w, 4)), w + 4),
    "branches": lambda w: (Concat(conv(w, 4), nn.Conv2d(w, 2, 1)), w + 6),
    "gate": lambda w: (Gate(w), w),
    "halves": lambda w: (Halves(w), w),
    "shuffle": lambda w: (nn.ChannelShuffle(2), w),
    "layer norm": lambda w: (nn.GroupNorm(1, w), w),
    "pool": lambda w: (nn.AvgPool2d(3, 1, 1), w),
    "deconv": lambda w: (nn.ConvTranspose2d(w, 8, 3, padding=1), 8),
}


@st.composite
def networks(draw):
    layers, width = [conv(3, 8)], 8
    for name in draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=6)):
        layer, width = BLOCKS[name](width)
        layers.append(layer)
    if draw(st.booleans()):
        layers += [nn.Flatten(), nn.Linear(36 * width, 5), nn.Tanh(), nn.Linear(5, 2)]
    else:
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)]
    return distinct(nn.Sequential(*layers))


QUICK = {
    "suppress_health_check": [HealthCheck.too_slow],
    "phases": (Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes
    "deadline": None,
}


@settings(max_examples=settings.default.max_examples * 2 // 5, **QUICK)
@given(networks(), st.integers(0, 9))
def test_cut_network_computes_what_the_masked_one_did(model, seed):
    traced = trace(model, X)
    groups = groups_from_trace(traced, model)
    before = outputs(model, X)
    for group in groups:
        if not group.fixed_reason and alike(group):
            order = torch.randperm(group.size, generator=torch.Generator().manual_seed(seed))
            assert_close(outputs(permuted(model, group, order), X), before)
    original, removed = copy.deepcopy(model), half(groups, seed)
    found = TrialCut(model, traced, groups, X).find_valid(removed)
    assert not found.failed, "every block is one that can be cut"
    after = outputs(model, X)
    assert [t.shape for t in after] == [t.shape for t in before]
    if not any(group.approximate_reasons for group in groups if group.name in removed):
        assert_close(after, outputs(zeroed(original, model), X))
    found.undo()
    assert_close(outputs(model, X), before)


@settings(max_examples=settings.default.max_examples // 4, **QUICK)
@given(networks(), st.floats(0.1, 0.7), st.sampled_from(["channels", "macs", "params"]))
def test_pruned_networks_train(model, sparsity, of):
    shapes = [t.shape for t in outputs(model, X)]
    try:
        prune(model, X, sparsity, of=of)
    except ConfigError as error:
        assume("cannot be reached" not in str(error))  # so much is coupled
        raise
    assert [t.shape for t in outputs(model, X)] == shapes
    model.train()(X).square().sum().backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
