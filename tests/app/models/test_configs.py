# SPDX-License-Identifier: MIT
"""Every model that can be chosen by name is built, as large as its file says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from regrow.utils.paths import config_dir

FILES = sorted((config_dir("conf") / "app" / "model").glob("*.yaml"))
FOREIGN = ("torchvision", "timm")  # tests/app/models/test_torchvision.py


@pytest.mark.parametrize("path", [f for f in FILES if f.stem not in FOREIGN], ids=lambda f: f.stem)
def test_model_is_built_as_large_as_its_file_says(path: Path) -> None:
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
