# SPDX-License-Identifier: MIT
import sys
import types

import pytest
import torch
from torch import nn

from regrow.app.start import checkpoint_of, given_weights, network_weights
from regrow.errors import ConfigError, StateError


def test_weights_of_a_plain_state_dict_and_of_a_checkpoint(tmp_path):
    layer = nn.Linear(2, 3)
    torch.save(layer.state_dict(), tmp_path / "plain.pt")
    wrapped = {f"network.{name}": tensor for name, tensor in layer.state_dict().items()}
    torch.save({"state_dict": wrapped | {"metric": torch.ones(1)}}, tmp_path / "lightning.ckpt")
    for name in ("plain.pt", "lightning.ckpt"):
        weights = given_weights(str(tmp_path / name))
        assert {*weights} == {"weight", "bias"}
        assert torch.equal(weights["weight"], layer.weight)


def test_compiled_names_are_seen_through():
    assert {*network_weights({"network._orig_mod.fc.weight": torch.ones(1)})} == {"fc.weight"}


def test_pretrained_by_name_asks_torchvision(monkeypatch):
    """A stand-in for the library, which would download."""
    models = types.ModuleType("torchvision.models")
    layer = nn.Linear(2, 2)

    def get_model(name, weights):
        if name != "tiny":
            raise ValueError(f"Unknown model {name}")
        assert weights == "DEFAULT"
        return layer

    models.get_model = get_model
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "torchvision" or None)
    assert torch.equal(given_weights("pretrained:tiny")["weight"], layer.weight)
    with pytest.raises(ConfigError, match="Unknown model huge"):
        given_weights("pretrained:huge")


def test_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no result\.json"):
        checkpoint_of(tmp_path)


def test_pickled_code_is_refused(tmp_path):
    torch.save({"state_dict": print}, tmp_path / "evil.ckpt")
    with pytest.raises(StateError, match="tensors and plain values"):
        given_weights(str(tmp_path / "evil.ckpt"))
