# SPDX-License-Identifier: MIT
"""The default teacher of a run: its dense baseline."""

from __future__ import annotations

import copy
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from regrow.app.config.instantiate import public_path

_DISTILL = ("regrow.Distill",)
# Callbacks without effect on a dense network.
_PRUNED_ONLY = (*_DISTILL, "regrow.AlternatingPhases")


def with_teacher(cfg: DictConfig, teacher: Path | str) -> DictConfig:
    """Return the configuration with `teacher` for each `Distill` without one."""
    names = _matching_callbacks(cfg, _DISTILL)
    missing = [name for name in names if cfg.callbacks[name].get("teacher") is None]
    if not missing:
        return cfg
    changed = editable_copy(cfg)
    for name in missing:
        changed.callbacks[name].teacher = str(teacher)
    return changed


def without_teacher(cfg: DictConfig) -> DictConfig:
    """Return the configuration without `Distill` and `AlternatingPhases`, for a dense network."""
    changed = editable_copy(cfg)
    for name in _matching_callbacks(cfg, _PRUNED_ONLY):
        changed.callbacks.pop(name)
    return changed


def _matching_callbacks(cfg: DictConfig, targets: tuple[str, ...]) -> list[str]:
    nodes = cfg.get("callbacks") or {}
    return [
        str(name)
        for name, node in nodes.items()
        if node and public_path(str(node.get("_target_"))) in targets
    ]


def editable_copy(cfg: DictConfig) -> DictConfig:
    """Return a copy of a configuration to which keys can be added."""
    changed = copy.deepcopy(cfg)
    OmegaConf.set_struct(changed, False)
    return changed
