# SPDX-License-Identifier: MIT
"""The callbacks built from Hydra nodes: OmegaConf containers work like plain ones."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from tiny_fits import Net, fit, read, zeros

from regrow import MagnitudePruning, StateError


def made(**node):
    return instantiate(OmegaConf.create({"_target_": "regrow.MagnitudePruning"} | node))


TABLE = {"_target_": "regrow.Table", "rows": {"3it": 0.25, "1ep": 0.5}}


def test_layers_patterns_and_tables_come_from_hydra():
    module = Net()
    pruning = made(
        sparsity=0.5,
        schedule=TABLE,
        include=["body.*"],
        exclude=["*.bias", "@first"],
        layers={"body.2": 0.25},
    )
    fit(module, pruning)
    assert [int((layer.weight == 0).sum()) for layer in module.body[::2]] == [0, 12]


@pytest.mark.parametrize("convert", ["none", "partial", "object", "all"])
def test_every_convert_mode_works(convert):
    module = Net()
    pruning = made(
        sparsity=0.5,
        schedule=TABLE | {"_convert_": convert},
        include=["body.0", "body.2"],
        layers={"body.2": 0.25},
        _convert_=convert,
    )
    fit(module, pruning)
    assert [int((layer.weight == 0).sum()) for layer in module.body[::2]] == [48, 12]


def test_table_keys_may_be_fractions():
    pruning = made(sparsity=0.5, schedule={"_target_": "regrow.Table", "rows": {0.25: 0.5}})
    fit(Net(), pruning)
    assert [entry["step"] for entry in pruning.history] == [4]


def test_checkpoint_loads_weights_only_and_in_a_python_made_callback(tmp_path):
    pruning = made(sparsity=0.5, schedule=TABLE, include=["body.0"], layers={"body.0.weight": 0.5})
    trainer = fit(Net(), pruning)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert pruning.state_key in read(tmp_path / "end.ckpt")["callbacks"]
    plain = MagnitudePruning(0.5, include="body.0")
    model = Net()
    plain.attach(model, tmp_path / "end.ckpt")
    assert zeros(model) == 48
    with pytest.raises(StateError, match="has no masks"):
        MagnitudePruning(0.5).attach(model, tmp_path / "end.ckpt")


def test_criterion_may_be_a_function_by_path():
    node = {"_target_": "hydra.utils.get_method", "path": "torch.abs"}
    pruning = made(sparsity=0.5, schedule="one_shot", criterion=node)
    module = Net()
    fit(module, pruning)
    assert pruning.method.criterion is torch.abs
    assert zeros(module) == 72


def test_each_callback_gets_its_own_movement_object():
    node = {"_target_": "regrow.Movement"}
    first, second = (made(sparsity=0.5, schedule="one_shot", criterion=node) for _ in range(2))
    assert first.method.criterion is not second.method.criterion


def test_omegaconf_containers_are_accepted_directly():
    pruning = MagnitudePruning(
        0.5,
        schedule="one_shot",
        include=ListConfig(["body.0"]),
        layers=DictConfig({"body.0": 0.25}),
    )
    module = Net()
    fit(module, pruning)
    assert zeros(module) == 24
