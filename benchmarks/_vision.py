# SPDX-License-Identifier: MIT
"""Torchvision's and timm's models for benchmarks, without constant parameters."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn


def needed(*packages: str) -> None:
    """Exit with status 0 and a message if a package is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print(f"left out, as it needs {', '.join(missing)}: see `make zoo`")
        sys.exit(0)


def build(source: str, name: str, **given: Any) -> nn.Module:
    """A model with random weights, in eval mode, from "torchvision" or "timm"."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    if source == "timm":
        import timm

        model = timm.create_model(name, **given)
    else:
        import torchvision

        model = torchvision.models.get_model(name, weights=None, **given)
    unsettle(model)
    return model.eval()


def unsettle(model: nn.Module) -> None:
    """Randomize parameters and buffers that are constant: zeros and ones would hide wrong cuts."""
    generator = torch.Generator().manual_seed(0)

    def draw(tensor: Tensor | None, low: float, high: float) -> None:
        if tensor is not None:
            values = torch.rand(tensor.shape, generator=generator) * (high - low) + low
            tensor.data.copy_(values)

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            draw(module.running_mean, -0.2, 0.2)
            draw(module.running_var, 0.5, 1.5)
    for parameter in model.parameters():
        first = float(parameter.detach().flatten()[0])
        if bool((parameter == first).all()):
            draw(parameter, *((0.5, 1.5) if first else (-0.2, 0.2)))


def pixels(model: nn.Module) -> int:
    """The size of image that a timm model is made for; 224 for others."""
    return int(getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[-1])


def heads(model: nn.Module, classes: int = 1000) -> list[nn.Module]:
    """The classifier layers, which Torch-Pruning must be told to ignore."""
    found = []
    for module in model.modules():
        size = getattr(module, "out_features", getattr(module, "out_channels", None))
        if isinstance(module, nn.Linear | nn.Conv2d) and size == classes:
            found.append(module)
    return found
