# SPDX-License-Identifier: MIT
import sys
import types

import pytest
import torch
from torch import nn

from regrow.app.config.initial_weights import checkpoint_of, load_initial_weights, network_weights
from regrow.utils.errors import ConfigError, StateError


def test_weights_of_a_plain_state_dict_and_of_a_checkpoint(tmp_path):
    layer = nn.Linear(2, 3)
    torch.save(layer.state_dict(), tmp_path / "plain.pt")
    wrapped = {f"network.{name}": tensor for name, tensor in layer.state_dict().items()}
    torch.save({"state_dict": wrapped | {"metric": torch.ones(1)}}, tmp_path / "lightning.ckpt")
    for name in ("plain.pt", "lightning.ckpt"):
        weights = load_initial_weights(str(tmp_path / name))
        assert {*weights} == {"weight", "bias"}
        assert torch.equal(weights["weight"], layer.weight)


def test_weights_with_compiled_names_load():
    assert {*network_weights({"network._orig_mod.fc.weight": torch.ones(1)})} == {"fc.weight"}


def test_pretrained_name_is_loaded_from_torchvision(monkeypatch):
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
    assert torch.equal(load_initial_weights("pretrained:tiny")["weight"], layer.weight)
    with pytest.raises(ConfigError, match="Unknown model huge"):
        load_initial_weights("pretrained:huge")


@pytest.fixture
def both(monkeypatch):
    """Stand-ins for torchvision, which knows `shared`, and timm, which knows `shared` and `own`."""
    models, timm = types.ModuleType("torchvision.models"), types.ModuleType("timm")

    def get_model(name, weights):
        if name != "shared":
            raise ValueError(f"Unknown model {name}")
        if weights not in ("DEFAULT", "V1"):
            raise KeyError(weights)
        return nn.Linear(1, {"DEFAULT": 1, "V1": 2}[weights])

    def create_model(name, pretrained):
        assert pretrained
        if name not in ("shared", "own.tag"):
            raise RuntimeError(f"Unknown model ({name})")
        return nn.Linear(1, 3)

    models.get_model, timm.create_model = get_model, create_model
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: name in ("torchvision", "timm") or None
    )


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("shared", 1),
        ("shared.V1", 2),
        ("own.tag", 3),
        ("timm/shared", 3),
        ("torchvision/shared", 1),
    ],
)
def test_pretrained_name_may_include_library_and_weights(both, name, outputs):
    assert load_initial_weights(f"pretrained:{name}")["weight"].shape == (outputs, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"was not found: torchvision: Unknown model nothing; timm: Unknown model"),
        ("torchvision/own.tag", "was not found: torchvision: Unknown model own$"),
        ("torchvision/shared.V9", "shared has no weights V9"),
        ("tim/shared", "must be one of timm, torchvision, got 'tim': did you mean 'timm'"),
    ],
)
def test_unknown_pretrained_names_raise(both, name, message):
    with pytest.raises(ConfigError, match=message):
        load_initial_weights(f"pretrained:{name}")


def test_missing_library_raises_with_its_name(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs timm: pip install "regrow\[vision\]", or'):
        load_initial_weights("pretrained:timm/resnet50")


def test_failed_download_raises_with_the_alternative(both, monkeypatch):
    def offline(name, weights):
        raise OSError("no route")

    monkeypatch.setattr(sys.modules["torchvision.models"], "get_model", offline)
    with pytest.raises(
        ConfigError, match=r"could not fetch its weights \(no route\): write start="
    ):
        load_initial_weights("pretrained:shared")


def test_folder_without_a_result_raises(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no result\.json"):
        checkpoint_of(tmp_path)


def test_pickled_code_raises(tmp_path):
    torch.save({"state_dict": print}, tmp_path / "evil.ckpt")
    with pytest.raises(StateError, match="tensors and plain values"):
        load_initial_weights(str(tmp_path / "evil.ckpt"))
