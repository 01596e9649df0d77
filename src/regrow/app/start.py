# SPDX-License-Identifier: MIT
"""Where the weights come from before pruning: a file, a run's folder, a name."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow.app.files import read_json
from regrow.errors import ConfigError, StateError

PRETRAINED = "pretrained:"
SCRATCH = "scratch"


def given_weights(start: str) -> dict[str, Tensor]:
    """The network's weights that `start` names.

    Args:
        start: A checkpoint of Lightning or a plain state dict, the folder of a run, or
            "pretrained:NAME" for a network of torchvision or timm.

    Raises:
        ConfigError: If there is no such thing, saying what may stand there.
        StateError: If the file cannot be read.
    """
    if start.startswith(PRETRAINED):
        return _pretrained(start.removeprefix(PRETRAINED))
    return network_weights(load_checkpoint(checkpoint_of(Path(start))))


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the chosen one of a run's folder."""
    if path.is_file():
        return path
    result = path / "result.json"
    if result.is_file():
        return path / str(read_json(result)["checkpoint"])
    if path.is_dir():
        raise ConfigError(f"start={path} holds no result.json: has that run finished?")
    raise ConfigError(
        f"start={path} does not exist: write a checkpoint, the folder of a finished run, "
        "'pretrained:NAME', 'scratch', or null to train the dense network first"
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, read with `weights_only=True`.

    Raises:
        StateError: If it is damaged, or holds more than tensors and plain values.
    """
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise StateError(
            f"{path} cannot be read as a checkpoint of tensors and plain values: {error}"
        ) from error
    return loaded


def network_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in a checkpoint, without the names of what wraps the network."""
    state = checkpoint.get("state_dict", checkpoint)
    weights = {str(name).replace("_orig_mod.", ""): value for name, value in state.items()}
    inner = {
        name.removeprefix("network."): value
        for name, value in weights.items()
        if name.startswith("network.")
    }
    return inner or weights


def _pretrained(name: str) -> dict[str, Tensor]:
    for library, build in (("torchvision", _from_torchvision), ("timm", _from_timm)):
        if importlib.util.find_spec(library) is not None:
            return build(name)
    raise ConfigError(
        f"start={PRETRAINED}{name} needs torchvision or timm: pip install torchvision, or name a "
        "checkpoint"
    )


def _from_torchvision(name: str) -> dict[str, Tensor]:
    models = importlib.import_module("torchvision.models")
    try:
        model = models.get_model(name, weights="DEFAULT")
    except ValueError as error:
        raise ConfigError(f"start={PRETRAINED}{name}: {error}") from error
    weights: dict[str, Tensor] = model.state_dict()
    return weights


def _from_timm(name: str) -> dict[str, Tensor]:
    timm = importlib.import_module("timm")
    if name not in timm.list_models(pretrained=True):
        raise ConfigError(f"start={PRETRAINED}{name}: timm has no pretrained model of that name")
    weights: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    return weights
