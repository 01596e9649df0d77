# SPDX-License-Identifier: MIT
"""Values of regrown weights are all computed before any is written."""

import copy

import pytest
import torch
from torch import nn

from regrow.pruning.config import PruningConfig
from regrow.pruning.drop_and_grow import drop_and_grow
from regrow.pruning.initializers import INITIALIZERS, zero
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import StateError


class Scaled(nn.Module):
    """A layer and one number of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(6, 8), nn.Parameter(torch.tensor(0.01))


def pruned(model=None, **settings):
    model = model or nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    pruner = Pruner(model, **settings)
    pruner.remember_original()
    pruner.prune_to(0.5)
    return model, pruner


def regrow(pruner, init):
    pruner.regrow(0.5, init=init)


def move(pruner, init):
    drop_and_grow(pruner, 0.5, grow="random", init=init)


@pytest.mark.parametrize("act", [regrow, move])
@pytest.mark.parametrize("init", ["original", lambda back: torch.zeros(3)])
def test_values_of_another_shape_raise_and_change_nothing(init, act):
    """The first layer's would do: it must not be written before the second one's are known."""
    model, pruner = pruned()
    pruner.state.originals["1.weight"] = torch.zeros(2, 2)
    before, masks = copy.deepcopy(model.state_dict()), pruner.masks
    with pytest.raises(StateError, match=r"must return values of shape"):
        act(pruner, init)
    assert pruner.enforcer.transaction.failed is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(masks[name], mask) for name, mask in pruner.masks.items())
    pruner.regrow(0.5, init="he")  # all is well


@pytest.mark.parametrize("init", sorted(set(INITIALIZERS) - {"orthogonal", "survivors"}))
def test_scalar_parameter_regrows(init):
    method = PruningConfig(include=["scale"], distribution="uniform", layers={"scale": 0.0})
    model = Scaled()
    pruner = Pruner(model, method, keep_removed=True)
    pruner.remember_original()
    pruner.set_masks({"scale": torch.tensor(False)})
    assert model.scale.item() == 0
    pruner.regrow(1.0, init=init)
    assert pruner.pruned == 0
    if init in ("removed", "original"):
        assert model.scale.item() == torch.tensor(0.01).item()


def test_custom_initialiser_may_write_into_the_zeros():
    def counting(back):
        values = zero(back)
        values[back.regrown] = torch.arange(1.0, int(back.regrown.sum()) + 1)
        return values

    model, pruner = pruned(nn.Sequential(nn.Linear(6, 8)))
    gone = ~pruner.masks["0.weight"]
    pruner.regrow(1.0, init=counting)
    assert model[0].weight[gone].tolist() == list(range(1, 25))


def test_weights_that_are_cast_between_events_keep_their_removed_values():
    model, pruner = pruned(keep_removed=True)
    wanted = {name: value.clone() for name, value in pruner.state.originals.items()}
    model.double()
    pruner.prune_to(0.8)
    pruner.unprune()
    for name, value in wanted.items():
        assert torch.equal(dict(model.named_parameters())[name].float(), value)
