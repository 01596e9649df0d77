# SPDX-License-Identifier: MIT
"""Default teacher of a run."""

from __future__ import annotations

import copy
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

_TEACHES = ("regrow.Distill", "regrow.callbacks.distill.Distill")


# What a dense network knows nothing of: it is the same one with and without these.
_BESIDE = (
    *_TEACHES,
    "regrow.AlternatingPhases",
    "regrow.callbacks.alternating_phases.AlternatingPhases",
)


def with_teacher(cfg: DictConfig, teacher: Path | str) -> DictConfig:
    """The configuration with `teacher` wherever a `Distill` has none."""
    lacking = [name for name in _named(cfg, _TEACHES) if cfg.callbacks[name].get("teacher") is None]
    if not lacking:
        return cfg
    changed = _open(cfg)
    for name in lacking:
        changed.callbacks[name].teacher = str(teacher)
    return changed


def without_teacher(cfg: DictConfig) -> DictConfig:
    """The configuration without any `Distill` or `AlternatingPhases`, for a dense network."""
    changed = _open(cfg)
    for name in _named(cfg, _BESIDE):
        changed.callbacks.pop(name)
    return changed


def _named(cfg: DictConfig, targets: tuple[str, ...]) -> list[str]:
    nodes = cfg.get("callbacks") or {}
    return [str(n) for n, node in nodes.items() if node and node.get("_target_") in targets]


def _open(cfg: DictConfig) -> DictConfig:
    changed = copy.deepcopy(cfg)
    OmegaConf.set_struct(changed, False)
    return changed
