# SPDX-License-Identifier: MIT
"""Groups that a module's code cannot lose are found by the error location, not by trying all."""

import torch
from torch import nn

from regrow.channels import prune
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import groups_from_trace
from regrow.channels.graph.trace import trace
from regrow.channels.prune_channels import LinkedGroups


class Derived(nn.Module):
    """Attention-like: the head size follows from the width, so that heads cannot go alone."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.inner, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        y = self.inner(x).reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)
        y = (y @ y.transpose(-1, -2)).softmax(-1) @ y
        return x + self.out(y.transpose(1, 2).reshape(batch, length, -1))


class Strict(Derived):
    """A module that fails on any cut."""

    def forward(self, x):
        if not torch.compiler.is_exporting() and self.inner.weight.shape != (24, 24):
            raise ValueError("24 are needed")
        return super().forward(x)


class Cached(nn.Module):
    """Caches a tensor derived from a parameter until it is in training mode again."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width))
        self.kept = {}

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def forward(self, x):
        if self.training or torch.compiler.is_exporting():
            return x * self.scale.exp()
        if "scale" not in self.kept:
            self.kept["scale"] = self.scale.detach().exp()
        return x * self.kept["scale"]


def derived(blocks=6, kind=Derived):
    torch.manual_seed(0)
    body = [layer for _ in range(blocks) for layer in (kind(24, 4), Block(24, 32))]
    return nn.Sequential(nn.Linear(5, 24), *body, nn.Linear(24, 3)).double()


class Block(nn.Sequential):
    def __init__(self, width, hidden):
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))


def test_sizes_derived_from_two_groups_are_cut_together():
    net, x = derived(), torch.randn(2, 7, 5, dtype=torch.float64)
    plan = prune(net, x, 0.6, of="params")
    assert plan.not_prunable == {"13": "the network's output"}
    fractions = {
        (len(net[i].inner.weight), net[i].inner.in_features, net[i].heads) for i in range(1, 13, 2)
    }
    assert all(width == inputs == 6 * heads for width, inputs, heads in fractions)
    assert min(heads for *_, heads in fractions) < 4
    assert plan.error < 1e-12


def test_groups_that_cannot_be_cut_together_are_kept_and_the_rest_is_cut():
    net, x = derived(kind=Strict), torch.randn(2, 7, 5, dtype=torch.float64)
    plan = prune(net, x, 0.3, of="params")
    # the hidden layers, and the only width that no such module sees
    assert set(plan.removed) == {*(f"{2 * i + 2}.0" for i in range(6)), "12.2"}
    assert all("needed" in plan.not_prunable[f"{2 * i + 1}.inner"] for i in range(6))
    assert plan.error < 1e-12


def test_number_of_trials_does_not_grow_with_equal_blocks(monkeypatch):
    runs, run = {}, TrialCut._outputs
    for blocks in (4, 12):
        net, x = derived(blocks), torch.randn(2, 7, 5, dtype=torch.float64)
        traced = trace(net, x)
        groups = groups_from_trace(traced, net)
        bench, tried = TrialCut(net, traced, groups, x), []
        monkeypatch.setattr(bench, "_outputs", lambda b=bench, t=tried: t.append(1) or run(b))
        removed = {g.name: torch.arange(g.size // 3) for g in groups if not g.fixed_reason}
        found = bench.find_valid(removed)
        assert len(found.failed) >= blocks
        runs[blocks] = len(tried)
        found.undo()
    assert runs[12] == runs[4]


def test_errors_without_a_layer_name_are_found_by_bisection():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            y = self.two(self.one(x).relu()).relu()
            if not torch.compiler.is_exporting() and y.shape[-1] != 6:
                raise ValueError("six are needed")
            return self.out(y)

    net, x = Odd().double(), torch.randn(3, 4, dtype=torch.float64)
    plan = prune(net, x, 0.3, of="params")
    assert set(plan.removed) == {"one"}
    assert plan.not_prunable["two"] == "ValueError: six are needed"


def test_cached_tensors_of_parameters_are_cleared():
    net = nn.Sequential(nn.Linear(5, 8), Cached(8), nn.Linear(8, 3)).double().eval()
    x = torch.randn(2, 5, dtype=torch.float64)
    with torch.no_grad():
        before = net(x)
        plan = prune(net, x, 0.5)
        assert net(x).shape == before.shape
        assert plan.removed == {"0": 4}
        plan.undo()
        assert torch.equal(net(x), before)
        assert not net.training


class Meeting:
    """A trial that knows which groups are linked."""

    def __init__(self, *sets):
        self.sets = sets

    def links(self, stuck, tried):
        return [each for each in self.sets if stuck & {*each} and each not in tried]


def test_only_the_group_that_failed_alone_is_fixed_if_a_set_fails_too():
    together, bench = LinkedGroups(), Meeting(("width", "heads"))
    pins, linked = together.after(bench, {"width": "not divisible"}, [])
    assert (pins, linked) == ({}, [("width", "heads")])  # retried: can still be cut
    pins, linked = together.after(bench, {"heads": "not divisible either"}, linked)
    assert (pins, linked) == ({"width": "not divisible"}, [])  # heads may go without it


def test_valid_sets_are_kept_and_a_failing_single_group_is_fixed():
    together, bench = LinkedGroups(), Meeting(("a", "b"))
    _, linked = together.after(bench, {"a": "x"}, [("c", "d")])
    assert linked == [("c", "d"), ("a", "b")]
    pins, linked = together.after(bench, {"e": "y"}, linked)
    assert pins == {"e": "y"}
    assert linked == [("c", "d"), ("a", "b")]
