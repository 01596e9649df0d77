# SPDX-License-Identifier: MIT
"""A cut keeps the Parameter objects; after any error the model is unchanged."""

import copy
from contextlib import suppress

import pytest
import torch
from cut_oracle import distinct, half
from torch import nn

from regrow.channels import prune
from regrow.channels.cut import attributes as repair
from regrow.channels.cut import surgery, verify
from regrow.channels.cut.channel_cut import ChannelCut, make_channel_cut
from regrow.channels.cut.surgery import (
    UndoLog,
    cut,
    kept_indices,
    mask_tensor,
    slice_tensor,
    tell_modules,
)
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import groups_from_trace
from regrow.channels.graph.trace import trace

X = torch.randn(2, 3, 6, 6, dtype=torch.float64)


class Heads(nn.Module):
    """Reads sizes from attributes, as attention does."""

    def __init__(self):
        super().__init__()
        self.sizes = [4, 4]
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.last = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        one, two = self.deep(self.norm(self.a(x)).relu()).split(self.sizes, 1)
        return self.last(one * two)


def picture(model):
    """Everything that a failed cut must not change: numbers, objects, attributes, formats."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    held = {
        name: (id(t), t.dtype, t.stride(), t.requires_grad, t.detach().clone(), id(t.grad))
        for name, t in tensors.items()
    }
    attributes = {
        (path, key): copy.copy(value)
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_")
    }
    return held, attributes, repr(model)


def assert_same(one, other):
    assert one[1:] == other[1:]
    assert one[0].keys() == other[0].keys()
    for name, (*first, values, grad) in one[0].items():
        *second, others, other_grad = other[0][name]
        assert first == second
        assert torch.equal(values, others)
        assert grad == other_grad


@pytest.fixture(scope="module")
def analysed():
    model = distinct(Heads())
    traced = trace(model, X)
    return model, traced, groups_from_trace(traced, model)


@pytest.fixture
def case(analysed):
    """A model with gradients and a frozen bias, its bench and channels to remove."""
    origin, traced, groups = analysed
    model = copy.deepcopy(origin)
    model(X).sum().backward()
    model.a.bias.requires_grad_(False)
    return model, TrialCut(model, traced, groups, X), half(groups)


def counted(monkeypatch, owner, name, at, error):
    """The function raises when it is called for the `at`-th time; returns how often it was."""
    original, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(name)
        if len(calls) == at:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    return calls


STEPS = [
    (surgery, "slice_tensor"),
    (surgery, "set_data"),
    (surgery, "sizes_from_tensors"),
    (UndoLog, "set"),
    (verify, "cut"),
    (verify, "tell_modules"),
    (verify, "set_sizes"),
    (verify, "kept_indices"),
    (verify, "size_changes"),
    (repair, "shape_after_cut"),
    (TrialCut, "_run"),
    (verify, "bound_forward"),
    (torch.nn.functional, "relu"),
    (torch.nn.Conv2d, "forward"),
]


@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("full")], ids=type)
def test_failed_cut_changes_nothing(case, monkeypatch, owner, name, error):
    model, bench, removed = case
    before = picture(model)
    kind = (KeyboardInterrupt, MemoryError)
    for at in (1, 2, 3, 5, 8, 12, 20, 40):
        with monkeypatch.context() as patched:
            calls = counted(patched, owner, name, at, error)
            try:
                bench.find_valid(removed).undo()
            except kind:
                assert len(calls) >= at
        assert_same(picture(model), before)
        if len(calls) < at:
            break


@pytest.mark.parametrize(
    ("owner", "name"), [(surgery, "slice_tensor"), (surgery, "set_data"), (UndoLog, "set")]
)
def test_partly_applied_plan_is_undone(case, monkeypatch, owner, name):
    model, bench, removed = case
    found = bench.find_valid(removed)
    plan = make_channel_cut(model, kept_indices(bench.groups, removed), found.undo)
    found.undo()
    before = picture(model)
    for at in range(1, 99):
        with monkeypatch.context() as patched:
            calls = counted(patched, owner, name, at, KeyboardInterrupt())
            with suppress(KeyboardInterrupt):
                plan.apply(model)()
        assert_same(picture(model), before)
        if len(calls) < at:
            return
    pytest.fail("it never came through")


def test_undo_restores_every_bit(case):
    model, bench, removed = case
    before = picture(model)
    found = bench.find_valid(removed)
    assert (model.sizes, model.a.out_channels, model.deep.groups) == ([2, 2], 4, 4)
    found.undo()
    assert_same(picture(model), before)
    found.undo()  # once more does nothing
    assert_same(picture(model), before)


def test_cut_keeps_parameter_objects_frozen_flags_and_statistics(case):
    """The same parameters, frozen ones frozen, statistics beside their channels, no gradients."""
    model, bench, removed = case
    original, ids = copy.deepcopy(model), {n: id(p) for n, p in model.named_parameters()}
    bench.find_valid(removed)
    (channels,) = removed.values()
    left = [i for i in range(8) if i % 4 not in channels.tolist()]
    assert {n: id(p) for n, p in model.named_parameters()} == ids
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("last.b"))
    assert not model.a.bias.requires_grad
    assert model.a.weight.requires_grad
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(model.norm, name), getattr(original.norm, name)[left])
    assert torch.equal(model.a.weight, original.a.weight[left])
    assert model.norm.num_batches_tracked == original.norm.num_batches_tracked
    assert not model.a.weight.untyped_storage().nbytes() > model.a.weight.numel() * 8


def test_model_trains_after_a_cut(case):
    """Also while an autograd graph from before the cut exists."""
    model, bench, removed = case
    old = model(X).sum()
    bench.find_valid(removed)
    model(X).sum().backward()
    assert model.a.weight.grad.shape == model.a.weight.shape == (4, 3, 3, 3)
    del old


def test_channels_last_layout_is_kept():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(
        memory_format=torch.channels_last
    )
    plan = prune(model, torch.zeros(2, 3, 8, 8), 0.5)
    assert model[0].weight.shape == (4, 3, 3, 3)
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in model)
    plan.undo()
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_models_keep_their_dtype(dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    plan = prune(model, torch.zeros(2, 6, dtype=dtype), 0.5)
    assert plan.removed == {"0": 4}
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_sliced_and_masked_tensors_by_hand():
    tensor = torch.arange(12.0).reshape(3, 4)
    dims = {0: torch.tensor([True, False, True]), 1: torch.tensor([True, True, False, False])}
    assert slice_tensor(tensor, dims).tolist() == [[0, 1], [8, 9]]
    assert mask_tensor(tensor, dims).tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [8, 9, 0, 0]]


def test_cut_works_without_trial_runs(analysed):
    origin, _, groups = analysed
    model, undo = copy.deepcopy(origin), UndoLog()
    before = picture(model)
    kept = kept_indices(groups, half(groups))
    cut(model, kept, undo)
    tell_modules(model, kept, undo)
    assert isinstance(make_channel_cut(model, kept, undo), ChannelCut)
    assert (model.deep.in_channels, model.deep.out_channels, model.deep.groups) == (4, 4, 4)
    undo()
    assert_same(picture(model), before)


class TiedTwice(nn.Module):
    """An embedding and a head with one weight, and two linear layers with another."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)
        self.one, self.two = nn.Linear(8, 6), nn.Linear(8, 6, bias=False)
        self.up = nn.Linear(6, 8)
        self.head.weight, self.two.weight = self.words.weight, self.one.weight

    def forward(self, x):
        x = self.words(x)
        return self.head(x + self.up(self.one(x).relu() * self.two(x)))


def test_all_modules_of_tied_weights_have_the_new_sizes_and_stay_tied():
    words = torch.arange(8).view(2, 4)
    model = distinct(TiedTwice())
    plan = prune(model, words, 0.5, distribution="uniform", round_to=1)
    assert plan.removed == {"up": 4, "one": 3}
    assert model.head.weight is model.words.weight
    assert model.two.weight is model.one.weight
    assert (model.words.num_embeddings, model.words.embedding_dim) == (9, 4)
    assert (model.head.in_features, model.head.out_features) == (4, 9)
    for layer in (model.one, model.two):
        assert (layer.in_features, layer.out_features) == (4, 3)

    fresh = distinct(TiedTwice())
    ChannelCut.from_state(plan.state_dict()).apply(fresh)
    assert (fresh.head.in_features, fresh.two.in_features, fresh.two.out_features) == (4, 4, 3)
    plan.undo()
    assert (model.head.in_features, model.two.in_features, model.two.out_features) == (8, 8, 6)
