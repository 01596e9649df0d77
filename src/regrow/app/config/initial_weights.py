# SPDX-License-Identifier: MIT
"""Initial weights: checkpoints, runs and pretrained networks that `start=` names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from regrow.io.checkpoints import read_checkpoint
from regrow.io.files import read_json
from regrow.utils.errors import ConfigError, check_choice

PRETRAINED = "pretrained:"
SCRATCH = "scratch"
PREFIX = "network."  # of the names in a task


def load_initial_weights(start: str) -> dict[str, Any]:
    """Load the state dict of the network that `start` names.

    That is a checkpoint of Lightning or a plain state dict, the folder of a run, or
    "pretrained:NAME" for a network of torchvision or timm (whichever is installed and knows it;
    "pretrained:timm/NAME" asks one, "resnet50.IMAGENET1K_V1" for certain weights).
    """
    if start.startswith(PRETRAINED):
        return _pretrained(start.removeprefix(PRETRAINED))
    checkpoint = read_checkpoint(checkpoint_of(Path(start)))
    return dict(checkpoint.get("state_dict", checkpoint))


def checkpoint_of(path: Path) -> Path:
    """Return the path of a checkpoint, or of the chosen checkpoint in a run's folder."""
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


def network_weights(checkpoint: Mapping[str, Any], names: Container[str]) -> dict[str, Tensor]:
    """Return the weights of a checkpoint (or state dict) under the names that a network has.

    The prefix `network.` of a task is removed if no weight has one of these names.
    """
    state = checkpoint.get("state_dict", checkpoint)
    weights = {str(name).replace("_orig_mod.", ""): value for name, value in state.items()}
    if any(name in names for name in weights):
        return weights
    inner = {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}
    return inner or weights


def _pretrained(given: str) -> dict[str, Tensor]:
    library, _, name = given.rpartition("/")
    allowed = [*_LIBRARIES]
    if library:
        allowed = [check_choice("start=pretrained:LIBRARY/NAME", library, _LIBRARIES)]
    installed = [one for one in allowed if importlib.util.find_spec(one) is not None]
    if not installed:
        raise ConfigError(
            f"start={PRETRAINED}{given} needs {' or '.join(allowed)}: "
            'pip install "regrow[vision]", or name a checkpoint'
        )
    problems = []
    for one in installed:
        try:
            return _LIBRARIES[one](name)
        except ConfigError as error:
            problems.append(f"{one}: {error}")
        except OSError as error:
            raise ConfigError(
                f"start={PRETRAINED}{given}: {one} could not fetch its weights ({error}): write "
                "start=FILE for weights that were fetched by other means"
            ) from error
    raise ConfigError(f"start={PRETRAINED}{given} was not found: {'; '.join(problems)}")


def _from_torchvision(name: str) -> dict[str, Tensor]:
    models = importlib.import_module("torchvision.models")
    network, _, chosen = name.partition(".")
    try:
        model: nn.Module = models.get_model(network, weights=chosen or "DEFAULT")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except KeyError as error:
        raise ConfigError(f"{network} has no weights {chosen}") from error
    return model.state_dict()


def _from_timm(name: str) -> dict[str, Tensor]:
    timm = importlib.import_module("timm")
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    except (ValueError, RuntimeError) as error:  # no such model; none of its weights
        raise ConfigError(str(error)) from error
    return model.state_dict()


_LIBRARIES: dict[str, Callable[[str], dict[str, Tensor]]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
}
