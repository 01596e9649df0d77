# SPDX-License-Identifier: MIT
"""The recipe that repeats a run, as a file and in its checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from regrow.app.config.hashing import config_hash, unimportant
from regrow.app.config.schema import GROUPS
from regrow.utils.lightning_classes import LightningCallback, pl
from regrow.utils.paths import config_dir

FILE = "recipe.yaml"
KEY = "regrow_recipe"  # entry of a checkpoint with the recipe of its run
_LEFT_OUT = ("logger", "paths", "force")  # paths of one machine, and display


class RecipeName(LightningCallback):
    """Store the recipe of the run, from `named_recipe`, in every checkpoint.

    Arguments that `save_hyperparameters` stored and a checkpoint of plain values cannot hold, such
    as networks and partial functions, are left out: the recipe has them.
    """

    def __init__(self, recipe: Mapping[str, str]) -> None:
        super().__init__()
        self.recipe = dict(recipe)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[KEY] = dict(self.recipe)
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            if key in checkpoint:
                kept = dict(checkpoint[key])
                checkpoint[key] = {name: value for name, value in kept.items() if is_plain(value)}
        checkpoint.pop("hparams_type", None)


def is_plain(value: Any) -> bool:
    """Whether a value consists of tensors and builtin types."""
    if type(value) in (dict, list, tuple):
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return all(map(is_plain, parts))
    return value is None or type(value) in (bool, int, float, str, Tensor)


def named_recipe(cfg: DictConfig) -> dict[str, str]:
    """Describe the recipe of a run for its checkpoints; saved as a .yaml file, `text` is it."""
    name = str(HydraConfig.get().runtime.choices["recipe"])
    return {"name": name, "config_hash": config_hash(cfg), "text": recipe_text(cfg)}


def recipe_text(cfg: DictConfig) -> str:
    """Return the recipe that repeats a run as YAML; its `config_hash` is the same."""
    choices = HydraConfig.get().runtime.choices
    head = [
        f"# The run of {choices['recipe']}, regrow {version('regrow')}, "
        f"settings {config_hash(cfg)}. To repeat it:",
        f"#   regrow train recipe={FILE}        # the path of this file; add any.setting=...",
        "# Left out: the logger, and the paths of data and dense networks.",
    ]
    if isinstance(cfg.start, str) and Path(cfg.start).exists():
        head.append("# It needs the checkpoint of start=, as it was.")
    return "\n".join(head) + "\n" + OmegaConf.to_yaml(OmegaConf.create(recipe_of(cfg, choices)))


def recipe_of(cfg: DictConfig, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as choices of options and the differences from them.

    A group is written in full if its option in `choices` is not part of regrow, or lacks some of
    its settings. Interpolations are kept as they are written.
    """
    values: Any = OmegaConf.to_container(cfg, resolve=False)
    recipe = {"about": values["about"]} if values.get("about") else {}
    recipe["defaults"] = []
    for group in (name for name in GROUPS if name in values and name not in _LEFT_OUT):
        option, difference = _group(group, choices.get(group), values[group])
        recipe["defaults"].append({f"override /{group}": option})
        if difference or option is None:
            recipe[group] = difference
    rest = {k: v for k, v in values.items() if k not in ("about", *GROUPS, *_LEFT_OUT)}
    defaults = _file(config_dir("conf") / "app" / "train.yaml")
    changed = _difference({key: defaults[key] for key in defaults.keys() & rest.keys()}, rest)
    return recipe | {"seed": values["seed"]} | (rest if changed is None else changed)


def _group(group: str, choice: Any, value: Any) -> tuple[str | None, Any]:
    """Return an option and the difference from it; None and all settings, if no option fits."""
    option = str(choice if value else "none")
    node = _packaged(group, option)
    if node is None or not isinstance(value, dict):
        return None, value
    hidden = unimportant(group, value)
    shown = {key: part for key, part in value.items() if key not in hidden}
    node = {key: part for key, part in node.items() if key not in hidden}
    difference = _difference(node, shown)
    return (None, value) if difference is None else (option, difference)


def _difference(base: dict[str, Any], value: dict[str, Any]) -> dict[str, Any] | None:
    """Return what turns `base` into `value` when merged over it; None if keys were removed."""
    if base.keys() - value.keys():
        return None  # merging removes nothing
    difference = {}
    for key, part in value.items():
        if isinstance(part, dict) and isinstance(base.get(key), dict):
            inner = _difference(base[key], part)
            if inner is None:
                return None
            if inner:
                difference[key] = inner
        elif key not in base or repr(base[key]) != repr(part):  # 1 is not 1.0 in a hash
            difference[key] = part
    return difference


def _packaged(group: str, option: str) -> dict[str, Any] | None:
    """Load an option of regrow; None if there is no such file."""
    for root in ("app", "shared"):
        path = config_dir("conf") / root / group / f"{option}.yaml"
        if path.is_file():
            return _merged(path)
    return None


def _merged(path: Path) -> dict[str, Any] | None:
    """Merge a file over the files in its defaults; None if these are not in its folder."""
    node = dict(_file(path))
    parts: list[dict[str, Any]] = []
    for entry in [name for name in node.pop("defaults", []) if name != "_self_"]:
        beside = path.with_name(f"{entry}.yaml")
        below = _merged(beside) if isinstance(entry, str) and beside.is_file() else None
        if below is None:
            return None
        parts.append(below)
    merged: Any = OmegaConf.to_container(OmegaConf.merge(*parts, node), resolve=False)
    return dict(merged)


@functools.cache
def _file(path: Path) -> dict[str, Any]:
    node: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return dict(node)
