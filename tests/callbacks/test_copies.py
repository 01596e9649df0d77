# SPDX-License-Identifier: MIT
"""Pruning callbacks can be pickled and copied, before a fit and after it."""

import copy
import pickle

import pytest
import torch
from tiny_fits import Net, copied, equal, fit

import regrow
from regrow.callbacks.core.pruning_callback import PruningCallback

PUBLIC = [getattr(regrow, name) for name in regrow.__all__]
KINDS = {
    kind.__name__: kind
    for kind in PUBLIC
    if isinstance(kind, type) and issubclass(kind, PruningCallback)
}
SETTINGS = {
    "MagnitudePruning": [{}, {"criterion": "movement"}, {"criterion": "block_fisher"}],
    "DynamicSparseTraining": [{"every": "3it"}, {"every": "3it", "grow": "momentum"}],
    "LearnedMasks": [{"method": method} for method in ("str", "cs", "l0", "edge_popup")],
    "PruneAtInit": [{"method": method} for method in ("snip", "grasp", "synflow", "random")],
    "PostTrainingPruning": [{"criterion": name} for name in ("wanda", "obs", "magnitude")],
    "ChannelPruning": [
        {"compact": None, "round_to": 1, "criterion": criterion} for criterion in ("l2", "taylor")
    ],
}
WAYS = {"pickle": lambda given: pickle.loads(pickle.dumps(given)), "deepcopy": copy.deepcopy}


class Whole(Net):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(2, 6)

    def forward(self, inputs):
        return self.body(inputs)


def test_every_public_pruning_callback_is_tested():
    assert KINDS.keys() == SETTINGS.keys()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "settings"), [(kind, each) for kind, given in SETTINGS.items() for each in given]
)
def test_a_copy_prunes_as_the_callback_does(kind, settings, way):
    one = KINDS[kind](sparsity=0.5, **settings)
    other = WAYS[way](one)
    assert repr(other.config.to_dict()) == repr(one.config.to_dict())
    first, second = Whole(), Whole()
    fit(first, one)
    fit(second, other)
    assert equal(copied(first), copied(second))
    assert one.sparsity == other.sparsity > 0
    again = WAYS[way](one)
    assert again.history == one.history
    assert all(torch.equal(again.masks[name], mask) for name, mask in one.masks.items())
