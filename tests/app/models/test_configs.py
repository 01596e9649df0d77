# SPDX-License-Identifier: MIT
"""Every model of conf/app/model is built with the parameter count of its file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from regrow.app.config.instantiate import instantiate_node
from regrow.utils.errors import ConfigError
from regrow.utils.paths import config_dir

FILES = sorted((config_dir("conf") / "app" / "model").glob("*.yaml"))
FOREIGN = ("torchvision", "timm", "resnet50", "mobilenet_v2", "efficientnet_lite0")
MODELS = [
    pytest.param(path, id=path.stem, marks=pytest.mark.vision if path.stem in FOREIGN else ())
    for path in FILES
]


@pytest.mark.parametrize("path", MODELS)
def test_model_has_the_parameter_count_in_its_config(path: Path) -> None:
    with torch.device("meta"):
        network = instantiate(OmegaConf.load(path))
    text = path.read_text()
    assert text.startswith("# ")
    said = re.match(r"# ([\d,]+) (parameters|weights)", text)
    if said is not None:
        layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        counts = {
            "parameters": sum(p.numel() for p in network.parameters()),
            "weights": sum(layer.weight.numel() for layer in layers),
        }
        assert counts[said[2]] == int(said[1].replace(",", ""))


@pytest.mark.parametrize("name", FOREIGN)
def test_missing_library_raises_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    node = OmegaConf.load(config_dir("conf") / "app" / "model" / f"{name}.yaml")
    package = node["_target_"].partition(".")[0]
    message = rf'model\._target_={package}\..* needs {package}: pip install "regrow\[vision\]"'
    with pytest.raises(ConfigError, match=message):
        instantiate_node("model", node, nn.Module)
