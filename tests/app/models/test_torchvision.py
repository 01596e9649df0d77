# SPDX-License-Identifier: MIT
"""The ImageNet models that are chosen by name are torchvision's and timm's, with their options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from regrow.app.config.initial_weights import load_initial_weights
from regrow.app.config.recipes import register
from regrow.profiling.cost import cost
from regrow.utils.errors import ConfigError
from regrow.utils.paths import config_dir

pytestmark = pytest.mark.vision


def build(*words: str) -> Any:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir("conf") / "app")):
        return instantiate(compose("train", [*words]).model)


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (("model=resnet50", "model.num_classes=7"), "torchvision.models.resnet"),
        (("model=mobilenet_v2", "model.num_classes=7"), "torchvision.models.mobilenetv2"),
        (("model=efficientnet_lite0", "model.num_classes=7"), "timm.models.efficientnet"),
        (
            ("model=torchvision", "model.name=resnet18", "model.num_classes=7"),
            "torchvision.models.resnet",
        ),
        (("model=timm", "model.model_name=resnet18", "model.num_classes=7"), "timm.models.resnet"),
    ],
)
def test_name_is_built_by_its_library(words: tuple[str, ...], module: str) -> None:
    network = build(*words)
    assert type(network).__module__ == module
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_parameter_counts_equal_the_published_ones() -> None:
    """Of the recipes' headers: 4.1 billion multiply-adds, 76.13 % and 71.88 %."""
    torchvision = pytest.importorskip("torchvision")
    assert cost(build("model=resnet50"), torch.zeros(1, 3, 224, 224)).macs == 4_089_184_256
    for name, said, accuracy in (("resnet50", 25557032, 76.13), ("mobilenet_v2", 3504872, 71.878)):
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        assert weights.meta["num_params"] == said
        assert weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] == accuracy


def test_blocks_can_start_as_the_identity() -> None:
    plain, zero = build("model=resnet50"), build("model=resnet50", "model.zero_init_residual=true")
    assert plain.layer1[0].bn3.weight.all()
    assert not zero.layer1[0].bn3.weight.any()


def test_width_and_dropout_of_mobilenet() -> None:
    network = build("model=mobilenet_v2", "model.width_mult=0.5", "model.dropout=0")
    assert network.features[1].conv[1].out_channels == 8
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0]


def test_unknown_pretrained_names_raise() -> None:
    with pytest.raises(ConfigError, match=r"Unknown model resnet49.*timm: Unknown model"):
        load_initial_weights("pretrained:resnet49")
    with pytest.raises(ConfigError, match="resnet50 has no weights V9"):
        load_initial_weights("pretrained:torchvision/resnet50.V9")
