# SPDX-License-Identifier: MIT
"""Analysis leaves a model unchanged: attributes, buffers, hooks, random state."""

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from installed_versions import exports_new_attributes
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from regrow.channels import groups
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import groups_from_trace
from regrow.channels.graph.preserve import no_mask_detection
from regrow.channels.graph.trace import trace
from regrow.channels.size import Sizes

X = torch.zeros(2, 4)


class Head(nn.Module):
    """Assigns attributes in forward in the ways of real networks."""

    def __init__(self, ways):
        super().__init__()
        self.a, self.c = nn.Linear(4, 6), nn.Linear(6, 2)
        self.ways, self.grid, self.grids, self.cache = ways, None, [torch.zeros(1)], {}
        self.calls, self.nested = 0, {"seen": []}
        self.register_buffer("last", torch.zeros(6))

    def forward(self, x):
        y = self.a(x)
        if "attribute" in self.ways:
            self.grid = y * 2
        if "list" in self.ways:
            self.grids[0] = y + 1
            self.grids.append(y)
        if "dict" in self.ways:
            self.cache["y"] = y
            self.nested["seen"].append(y)
        if "buffer" in self.ways:
            self.last = self.last * 0.5
        if "count" in self.ways:
            self.calls += 1
        if "new" in self.ways:
            self.fresh = y
        if "random" in self.ways:
            y = y * random.random() * np.random.rand()
        return self.c(y)


WAYS = ["attribute", "list", "dict", "buffer", "count", "new", "random"]
GROW = {"list", "dict", "new"}  # add attributes or items


def picture(model):
    """Everything in the modules' dicts, by value, and the identity of each tensor."""
    every = [
        {k: v for k, v in vars(m).items() if k not in ("_modules", "training")}
        for m in model.modules()
    ]
    every += [[[*m._modules], [*m._buffers], m.training] for m in model.modules()]
    return every


def alike(one, other):
    left, right = tree_leaves(one), tree_leaves(other)
    return len(left) == len(right) and all(
        (a is b or torch.equal(a, b)) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(left, right, strict=True)
    )


def generators():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def look_with_sizes(model):
    Sizes(model, groups_from_trace(trace(model, X), model), X, "macs")


def look_with_trials(model):
    traced = trace(model, X)
    trial = TrialCut(model, traced, groups_from_trace(traced, model), X)
    trial.find_valid({"a": torch.tensor([1])}).undo()


LOOKS = [lambda model: groups(model, X), look_with_sizes, look_with_trials]


@given(ways=st.sets(st.sampled_from(WAYS)), training=st.booleans(), look=st.sampled_from(LOOKS))
def test_analysis_leaves_the_model_unchanged(ways, training, look):
    model = Head(ways if exports_new_attributes() else ways - GROW).train(training)
    before, state = copy.deepcopy(picture(model)), copy.deepcopy(model.state_dict())
    ids, drawn = [id(t) for t in model.state_dict(keep_vars=True).values()], generators()
    look(model)
    found = picture(model)
    assert not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves(found))
    assert alike(found, before)
    assert [id(t) for t in model.state_dict(keep_vars=True).values()] == ids
    assert alike(model.state_dict(), state)
    assert generators() == drawn


@pytest.mark.parametrize("kwargs", [False, True])
def test_hooks_are_not_called_with_fake_tensors_and_remain(kwargs):
    model, seen = Head([]), []

    def hook(module, *given):
        seen.extend(tree_leaves(given))

    model.a.register_forward_hook(hook, with_kwargs=kwargs)
    model.c.register_forward_pre_hook(hook, with_kwargs=kwargs)
    before = [[*m._forward_hooks, *m._forward_pre_hooks] for m in model.modules()]
    groups(model, X)
    assert not any(isinstance(leaf, FakeTensor) for leaf in seen)
    assert [[*m._forward_hooks, *m._forward_pre_hooks] for m in model.modules()] == before
    seen.clear()
    model(X)
    assert seen


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_hooks_that_compute_weights_are_traced(wrap):
    model = nn.Sequential(wrap(nn.Linear(4, 6)), nn.Linear(6, 2))
    before = {name: id(value) for name, value in vars(model[0]).items()}
    groups(model, X)
    assert {name: id(value) for name, value in vars(model[0]).items()} == before


def test_hooks_with_which_transformers_collects_hidden_states_are_traced():
    """`transformers` 5 registers them on the first call, and its models read what they collect."""

    class Collecting(nn.Sequential):
        def forward(self, x):
            self.found = []
            super().forward(x)
            return self.found[0]

    model = Collecting(nn.Linear(4, 6), nn.Linear(6, 2))

    def collect(module, args, output):
        model.found.append(output)

    collect.__module__ = "transformers.utils.output_capturing"
    model[1].register_forward_hook(collect)
    assert [group.fixed_reason for group in groups(model, X)] == [None, "the network's output"]


def test_masks_of_transformers_are_inspected_again_after_an_error():
    detect = nn.modules.transformer._detect_is_causal_mask
    causal = nn.Transformer.generate_square_subsequent_mask(3)

    def fail():
        with no_mask_detection():
            assert not nn.modules.transformer._detect_is_causal_mask(causal)
            assert nn.modules.transformer._detect_is_causal_mask(causal, True)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert nn.modules.transformer._detect_is_causal_mask is detect
    assert detect(causal)
