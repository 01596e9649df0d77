# SPDX-License-Identifier: MIT
"""Lightning's ModelPruning beside a pruning callback raises before training."""

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from installed_versions import two_packages
from tiny_fits import SGD, Net, copied, fit
from torch import nn

from regrow import (
    ChannelPruning,
    ConfigError,
    DynamicSparseTraining,
    LearnedMasks,
    MagnitudePruning,
    PruneAtInit,
)


class Own(pl.callbacks.ModelPruning):
    """A user's subclass."""


def methods():
    yield MagnitudePruning(0.5)
    yield DynamicSparseTraining(0.5, every="2it")
    yield LearnedMasks("str", 0.5)
    yield PruneAtInit(0.5, method="random")
    yield ChannelPruning(0.5, example_input=torch.zeros(2, 6))


@pytest.mark.parametrize("pruning", list(methods()), ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("theirs_first", [True, False])
def test_model_pruning_raises_before_training(pruning, theirs_first):
    theirs = pl.callbacks.ModelPruning("l1_unstructured", amount=0.5)
    both = (theirs, pruning) if theirs_first else (pruning, theirs)
    module = Net(SGD)
    before = copied(module)
    with pytest.raises(ConfigError, match=r"ModelPruning.*leave it out"):
        fit(module, *both)
    assert all(torch.equal(before[name], now) for name, now in copied(module).items())


@pytest.mark.parametrize(
    "kind",
    [
        pl.callbacks.ModelPruning,
        pytest.param(pytorch_lightning.callbacks.ModelPruning, marks=two_packages),
        Own,
    ],
)
def test_every_model_pruning_class_raises(kind):
    with pytest.raises(ConfigError, match=kind.__name__):
        fit(Net(SGD), MagnitudePruning(0.5), kind("l1_unstructured", amount=0.5))


def test_model_pruned_by_model_pruning_can_be_pruned_afterwards():
    module = Net(SGD)
    fit(module, pl.callbacks.ModelPruning("l1_unstructured", amount=0.2))
    assert isinstance(module.body[0].weight, nn.Parameter)
    pruning = MagnitudePruning(0.5)
    fit(module, pruning, max_epochs=20)
    assert pruning.sparsity == 0.5
