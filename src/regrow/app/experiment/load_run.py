# SPDX-License-Identifier: MIT
"""Config, network and masks of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError  # type: ignore[import-untyped]

from regrow.app.config.initial_weights import network_weights
from regrow.app.training.classifier import Classifier
from regrow.channels.cut.channel_cut import ChannelCut, make_channel_cut
from regrow.io.checkpoints import KEY
from regrow.masks.masks import Masks
from regrow.utils.errors import ConfigError, StateError

_INNER = "network."  # of the names in a Classifier


_ADVICE = "in Python, regrow.export(model, path, example_input) takes any model"


_NEEDED = {"model", "data", "optimizer", "scheduler", "finetune", "seed", "start"}


def run_config(path: Path, advice: str = _ADVICE) -> DictConfig:
    """The configuration of the run that a checkpoint lies in.

    Args:
        path: The checkpoint.
        advice: What to do with any other, for messages.

    Raises:
        ConfigError: If there is none, or it is of another program.
    """
    file = path.resolve().parent.parent / ".hydra" / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            f"{path} is not of a run of `regrow train`: that has its configuration in "
            f".hydra/config.yaml beside its folder checkpoints; {advice}"
        )
    try:
        cfg = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise StateError(f"{file} is damaged: {error}") from error
    if not isinstance(cfg, DictConfig) or not {*cfg} >= _NEEDED:
        raise ConfigError(f"{file} is not of `regrow train`; {advice}")
    return cfg


def load_small(module: Classifier, checkpoint: dict[str, Any]) -> ChannelCut | None:
    """Cuts a fresh module as the checkpoint says, and loads the weights.

    Returns:
        The plan in the names of the module's network; None where nothing was cut.

    Raises:
        StateError: If plan or weights are of another network.
    """
    plan = None
    if KEY in checkpoint:
        given = ChannelCut.from_state(checkpoint[KEY])
        undo = given.apply(module)
        plan = make_channel_cut(
            module.network,
            {name.removeprefix(_INNER): dims for name, dims in given.kept.items()},
            undo,
            removed=given.removed,
            pinned=given.pinned,
            error=given.error,
        )
    try:
        module.network.load_state_dict(network_weights(checkpoint))
    except RuntimeError as error:
        raise StateError(f"the checkpoint's weights are of another network: {error}") from error
    return plan


def masks_of(checkpoint: Mapping[str, Any]) -> Masks | None:
    """The masks that a pruner left in a checkpoint."""
    for held in (checkpoint.get("callbacks") or {}).values():
        pruner = held.get("pruner") if isinstance(held, dict) else None
        if isinstance(pruner, dict) and "masks" in pruner:
            return Masks.unpack(pruner["masks"])
    return None


def held_masks(checkpoint: Mapping[str, Any]) -> Masks | None:
    """What all pruners of a checkpoint leave together."""
    masks: dict[str, Tensor] = {}
    for held in (checkpoint.get("callbacks") or {}).values():
        pruner = held.get("pruner") if isinstance(held, dict) else None
        if not isinstance(pruner, dict) or "masks" not in pruner:
            continue
        for name, mask in Masks.unpack(pruner["masks"]).items():
            masks[name] = mask & masks[name] if name in masks else mask
    return Masks(masks) if masks else None
