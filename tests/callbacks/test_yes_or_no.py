# SPDX-License-Identifier: MIT
"""Settings that are True or False refuse everything else: a text such as "no" would mean True."""

import inspect

import pytest
import torch
from torch.utils.data import TensorDataset

import regrow
from regrow.app.data.fashion_mnist import FashionMNIST
from regrow.data import ResumableDataModule
from regrow.data.dataset_loader import DatasetLoader
from regrow.utils.errors import ConfigError
from regrow.utils.lightning_classes import pl

GIVEN = {"sparsity": 0.5, "dataset": TensorDataset(torch.zeros(2, 1)), "batch_size": 1}
CLASSES = [
    thing
    for name in regrow.__all__
    if isinstance(thing := getattr(regrow, name), type) and issubclass(thing, pl.Callback)
]
OTHERS = [ResumableDataModule, DatasetLoader, FashionMNIST]
SETTINGS = [
    (made, setting)
    for made in [*CLASSES, *OTHERS]
    for setting, parameter in inspect.signature(made).parameters.items()
    if parameter.annotation == "bool"
]


def needed(made):
    """Arguments that a class cannot do without."""
    parameters = inspect.signature(made).parameters.values()
    empty = [p.name for p in parameters if p.default is p.empty and p.name in GIVEN]
    return {name: GIVEN[name] for name in empty}


def test_there_are_such_settings():
    assert len({made for made, _ in SETTINGS}) > 5


@pytest.mark.parametrize(("made", "setting"), SETTINGS)
def test_other_values_are_refused(made, setting):
    with pytest.raises(ConfigError, match=setting):
        made(**needed(made) | {setting: "no"})
