# SPDX-License-Identifier: MIT
"""Load the configuration, network and masks of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError  # type: ignore[import-untyped]

from regrow.app.config.initial_weights import PREFIX
from regrow.app.training.build import load_weights, network_of
from regrow.channels.cut.channel_cut import ChannelCut, make_channel_cut
from regrow.io.checkpoints import KEY, read_checkpoint
from regrow.masks.masks import Masks
from regrow.utils.errors import ConfigError, StateError

_ADVICE = "in Python, regrow.export(model, path, example_input) exports any model"
_NEEDED = {"model", "data", "optimizer", "scheduler", "finetune", "seed", "start"}


def config_file(path: Path) -> Path:
    """Return where the configuration of the run that wrote a checkpoint would be."""
    return path.resolve().parent.parent / ".hydra" / "config.yaml"


def run_config(path: Path, advice: str = _ADVICE) -> DictConfig:
    """Load the configuration of a checkpoint's run; `advice` is the alternative if it has none."""
    file = config_file(path)
    if not file.is_file():
        raise ConfigError(
            f"{path} is not from a run of `regrow train`, which has its configuration in "
            f".hydra/config.yaml beside the folder checkpoints; {advice}"
        )
    try:
        cfg = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise StateError(f"{file} is damaged: {error}") from error
    if not isinstance(cfg, DictConfig) or not {*cfg} >= _NEEDED:
        raise ConfigError(f"{file} is not from `regrow train`; {advice}")
    return cfg


def load_run(path: Path, advice: str = _ADVICE) -> tuple[DictConfig, dict[str, Any]]:
    """Load the configuration and content of a run's checkpoint; set the run's CPU threads."""
    cfg, checkpoint = run_config(path, advice), read_checkpoint(path)
    if "state_dict" not in checkpoint:
        raise ConfigError(f"{path} is no checkpoint of a run: it has no state_dict")
    if isinstance(cfg.get("threads"), int):  # "auto" is for simultaneous jobs
        torch.set_num_threads(cfg.threads)
    return cfg, checkpoint


def load_small(module: nn.Module, checkpoint: dict[str, Any]) -> ChannelCut | None:
    """Cut a new module to the shapes of the checkpoint and load the weights.

    Returns the cut with names of the module's network, or None.
    """
    plan = None
    if KEY in checkpoint:
        saved = ChannelCut.from_state(checkpoint[KEY])
        undo = saved.apply(module)
        network = network_of(module)
        prefix = "" if network is module else PREFIX
        plan = make_channel_cut(
            network,
            {name.removeprefix(prefix): dims for name, dims in saved.kept.items()},
            undo,
            removed=saved.removed,
            not_prunable=saved.not_prunable,
            error=saved.error,
        )
    try:
        load_weights(module, checkpoint)
    except RuntimeError as error:
        raise StateError(f"the checkpoint's weights are of another network: {error}") from error
    return plan


def saved_pruners(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the states of the callbacks with a pruner, by their keys."""
    found = {}
    for key, state in (checkpoint.get("callbacks") or {}).items():
        pruner = state.get("pruner") if isinstance(state, dict) else None
        if isinstance(pruner, dict) and "masks" in pruner:
            found[key] = state
    return found


def combined_masks(checkpoint: Mapping[str, Any]) -> Masks | None:
    """Return the combined masks of all pruners in a checkpoint."""
    masks: dict[str, Tensor] = {}
    for state in saved_pruners(checkpoint).values():
        for name, mask in Masks.unpack(state["pruner"]["masks"]).items():
            masks[name] = mask & masks[name] if name in masks else mask
    return Masks(masks) if masks else None
