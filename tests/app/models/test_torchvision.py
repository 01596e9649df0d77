# SPDX-License-Identifier: MIT
"""Beside the real torchvision, fetched into a folder of its own: the same names and outputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
PROGRAM = """
import torch

# its wheel is built for CUDA: beside a CPU-only torch these two operators are missing
if not torch.cuda.is_available():
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from regrow.app.config.recipes import register
from regrow.utils.paths import config_dir
from regrow.app.models import ImageNetResNet, MobileNetV2

torch.set_num_threads(1)
torch.manual_seed(0)
for name, ours in (
    ("resnet18", ImageNetResNet(18)),
    ("resnet34", ImageNetResNet(34)),
    ("resnet50", ImageNetResNet(50)),
    ("resnet101", ImageNetResNet(101)),
    ("mobilenet_v2", MobileNetV2()),
):
    theirs = torchvision.models.get_model(name, weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # what starts as 0 or 1 would hide much
            torch.nn.init.uniform_(module.weight, 0.2, 0.6)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    state = theirs.state_dict()
    assert list(state) == list(ours.state_dict()), name
    ours.eval().load_state_dict(state)
    images = torch.randn(2, 3, 75, 96)
    with torch.no_grad():
        expected = theirs(images)
        assert expected.std() > 1e-4
        torch.testing.assert_close(ours(images), expected)

register()
with initialize_config_dir(version_base="1.3", config_dir=str(config_dir("conf") / "app")):
    cfg = compose("train", ["model=torchvision", "model.name=resnet18", "model.num_classes=7"])
network = instantiate(cfg.model)
assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
assert type(network).__module__ == "torchvision.models.resnet"
weights = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
print(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"], weights.meta["num_params"])
"""


@pytest.mark.slow
def test_torchvisions_weights_fit_and_give_its_outputs(tmp_path: Path) -> None:
    install = ["-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "there"]
    wanted = ["torchvision", "-c", CHECKOUT / "constraints.txt"]
    subprocess.run([sys.executable, *install, *wanted], check=True)
    paths = os.pathsep.join([str(tmp_path / "there"), str(CHECKOUT / "src")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["71.878", "3504872"]  # as the recipe and the model say
