# SPDX-License-Identifier: MIT
"""Every recipe composes, builds and trains its full model for two steps on small data."""

from __future__ import annotations

import itertools
import math
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from short_recipe_fits import RESNET18, job, short_fit, tiny

from regrow.app.config.recipes import load, recipe_files
from regrow.callbacks.channel_pruning import ChannelPruning
from regrow.profiling.cost import cost

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*litlogger.*"),
]
METHODS = (
    "acdc cs distill edge_popup grasp imp_init l0 lr_rewind random random_ticket reinit_control "
    "set snip static str synflow weights_only"
)
# All of digits, and of the others one recipe a method and a kind of data; the rest, deeper
# networks and variants of these, train in `make slow`.
OFTEN = {
    *("cifar10/resnet20_gmp", "cifar100/vgg16_synflow", "imagenet/mobilenet_v2_gmp"),
    *("fashion_mnist/lenet5_channel", "fashion_mnist/resnet8_channel"),
    *(f"fashion_mnist/lenet300_{method}" for method in METHODS.split()),
    *(name for name in recipe_files() if name.startswith("digits/")),
}


def marks(name: str) -> list[pytest.MarkDecorator]:
    found = [] if name in OFTEN else [pytest.mark.slow]
    if name.endswith("int8"):
        found.append(pytest.mark.skipif(find_spec("torchao") is None, reason="extra int8"))
    return found if name.startswith("digits/") else [*found, pytest.mark.vision]


RECIPES = [pytest.param(name, marks=marks(name)) for name in recipe_files()]
assert {*recipe_files()} >= OFTEN


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(name: str, small_data: Path, tmp_path: Path) -> None:
    cfg = job(f"recipe={name}", *tiny(name, small_data))
    trainer, pruning = short_fit(cfg, tmp_path)
    assert trainer.global_step == max(1, 2 // cfg.trainer.accumulate_grad_batches)
    assert torch.isfinite(trainer.callback_metrics["val/loss"])
    if name.startswith("imagenet/"):
        assert trainer.lightning_module.network(torch.zeros(1, 3, 224, 224)).shape == (1, 3)
    if not cfg.pruning:
        assert pruning is None
    elif "budget" in cfg.callbacks:  # which takes back what two steps do not make up for
        total = sum(mask.numel() for mask in pruning.masks.values())
        assert 0 <= pruning.sparsity <= math.ceil(pruning.final * total) / total
    elif isinstance(pruning, ChannelPruning):
        # in whole channels, of which the smallest networks have few
        assert pruning.sparsity == pytest.approx(cfg.pruning.sparsity, abs=0.03)
    else:
        masks, own = pruning.masks, pruning.pruner.layer_targets
        target = sum(own.get(name, pruning.final) * mask.numel() for name, mask in masks.items())
        assert masks.pruned == pytest.approx(target, abs=len(own) + 1)


@pytest.mark.parametrize("name", [n for n in recipe_files() if n.startswith(("cifar", "imagenet"))])
def test_header_states_the_published_result_and_the_differences(name: str) -> None:
    path = recipe_files()[name]
    about = load(path).about
    lines = path.read_text().splitlines()
    header = " ".join(line[2:] for line in itertools.takewhile(lambda x: x[:2] == "# ", lines))
    assert re.search(r"Aims at: .*(Its settings|Settings).*Ours", header)
    if about.published is None:
        assert "was checked" in header
    else:
        for number in re.findall(r"\d+\.\d+", about.published):
            assert number in header, f"{number} % of {about.source}"
    for paper in re.findall(r"arXiv:[\d.]+\d", about.source):
        assert paper in header


@pytest.mark.vision
def test_vgg16_loses_as_many_channels_as_in_the_paper(small_data: Path, tmp_path: Path) -> None:
    """VGG-16-pruned-A: half of the first and the last six; 64 % of parameters, 34.2 % of MACs."""
    name = "cifar10/vgg16_channel"
    cfg = job(f"recipe={name}", *tiny(name, small_data))
    trainer, _ = short_fit(cfg, tmp_path)
    network, image = trainer.lightning_module.network, torch.zeros(1, 3, 32, 32)
    channels = [m.out_channels for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert channels == [32, 64, 128, 128, *[256] * 9]
    small, dense = cost(network, image), cost(instantiate(cfg.model), image)
    assert 1 - small.params / dense.params == pytest.approx(0.64, abs=0.005)
    assert 1 - small.macs / dense.macs == pytest.approx(0.342, abs=0.001)


@pytest.mark.vision
def test_two_of_four_leaves_the_first_convolution_dense(small_data: Path, tmp_path: Path) -> None:
    name = "imagenet/resnet50_two_four"
    cfg = job(f"recipe={name}", *tiny(name, small_data), *RESNET18)
    trainer, pruning = short_fit(cfg, tmp_path)
    assert "network.conv1.weight" not in pruning.masks
    weight = trainer.lightning_module.network.layer4[1].conv2.weight
    inputs = weight.permute(0, 2, 3, 1).reshape(-1, 4)  # groups of four lie along the inputs
    assert ((inputs != 0).sum(1) == 2).all()
