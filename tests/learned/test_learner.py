# SPDX-License-Identifier: MIT
"""A plain pruner whose criterion is a learner's margin."""

import copy

import pytest
import torch
from torch import nn

from regrow import ConfigError, StateError
from regrow.learned.learner import Learner, MarginCriterion
from regrow.learned.learning_window import LearningWindow
from regrow.learned.methods import STR
from regrow.pruning.config import PruningConfig
from regrow.pruning.pruner import Pruner


def learning():
    """A pruner and a learner that has begun; sigmoid(0) = 1/2 is the threshold of the weights."""
    torch.manual_seed(0)
    net = nn.Linear(10, 10, bias=False)
    nn.init.normal_(net.weight)
    learner = Learner(STR(first=0.0))
    pruner = Pruner(net, PruningConfig(MarginCriterion(learner)), keep_removed=True)
    learner.attach_to(pruner)
    dense = net.weight.detach().clone()
    learner.start(LearningWindow(0.6, 0.7, 0, 10))
    return pruner, learner, dense


def test_hardening_keeps_effective_values_and_stores_the_dense_ones_of_the_others():
    pruner, learner, dense = learning()
    entry = learner.harden(pruner, 0.6)
    weight, kept = pruner.model.weight, pruner.masks["weight"]
    smallest = dense.abs().flatten().argsort()[:60]
    assert set((~kept).flatten().nonzero().flatten().tolist()) == set(smallest.tolist())
    effective = dense.sign() * (dense.abs() - 0.5).clamp_min(0)
    torch.testing.assert_close(weight.detach(), torch.where(kept, effective, 0.0))
    assert (entry["pruned"], learner.active) == (60, False)
    assert entry["learned"] == int((dense.abs() <= 0.5).sum()) / 100
    pruner.unprune()
    assert torch.equal(weight[~kept], dense[~kept])


def test_a_failed_hardening_leaves_effective_weights():
    pruner, learner, _ = learning()
    effective = pruner.model.weight.detach().clone()
    with pytest.raises(ConfigError, match="sparsity must be"):
        learner.harden(pruner, 90)
    assert torch.equal(pruner.model.weight, effective)
    assert learner.active


def test_state_of_the_learner_is_saved_and_sealed_with_that_of_the_pruner():
    pruner, learner, dense = learning()
    state = copy.deepcopy(pruner.state_dict())
    other, again, _ = learning()
    other.load_state_dict(state)
    assert torch.equal(again.dense["weight"], dense)
    assert (again.rate, again.window) == (learner.rate, learner.window)
    state["criterion"]["dense"]["weight"][0, 0] += 1
    with pytest.raises(StateError, match="damaged: criterion/dense/weight"):
        other.load_state_dict(state)
