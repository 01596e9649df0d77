# SPDX-License-Identifier: MIT
"""Command-line overrides: groups, swept groups, plugins."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from regrow.app.config.recipes import groups
from regrow.utils.errors import ConfigError
from regrow.utils.paths import config_dir

_PLAIN = re.compile(r"[A-Za-z_]\w*(\.\w+)+=")  # a setting inside a group, neither added nor taken


_ENCLOSED = re.compile(r"""\[.*\]|\{.*\}|\(.*\)|'.*'|".*\"""")  # a comma in there lists nothing


_PARAMS = "hydra.sweeper.params"


_SWEPT = re.compile(r"(choice|range|interval|tag|glob|shuffle|sort)\(")


def defer_to_jobs(words: Sequence[str]) -> list[str]:
    """Leave settings to the jobs of a sweep over recipes or other groups.

    Hydra first composes the configuration without the swept overrides, where
    `pruning.sparsity=0.9` is an error unless a pruning is chosen. Written as a choice of one value,
    a setting is swept too.

    Example:
        >>> defer_to_jobs(["-m", "recipe=digits/gmp,digits/imp", "pruning.sparsity=0.9"])
        ['-m', 'recipe=digits/gmp,digits/imp', 'pruning.sparsity=choice(0.9)']
        >>> defer_to_jobs(["-m", "recipe=digits/gmp", "pruning.sparsity=0.9"])
        ['-m', 'recipe=digits/gmp', 'pruning.sparsity=0.9']
    """
    if not any(_varies_a_group(word) for word in words):
        return list(words)
    return [_choice(word) if _PLAIN.match(word) else word for word in words]


def _varies_a_group(word: str) -> bool:
    key, _, value = word.partition("=")
    if key == "sweep":
        return any("recipe" in _params(name) for name in re.findall(r"\w+", value))
    return "." not in key and not key.startswith(("-", "hydra/")) and _is_swept(value)


def _params(preset: str) -> set[str]:
    """The parameters that a preset of regrow sweeps over."""
    path = config_dir("conf") / "app" / "sweep" / f"{preset}.yaml"
    node = OmegaConf.select(OmegaConf.load(path), _PARAMS) if path.is_file() else None
    return {str(key) for key in node or ()}


def _choice(word: str) -> str:
    key, _, value = word.partition("=")
    alone = key.startswith("hydra.") or not value or _is_swept(value)
    return word if alone else f"{key}=choice({value})"


def _is_swept(value: str) -> bool:
    return "," in _ENCLOSED.sub("", value) or _SWEPT.match(value) is not None


_NOTHING = {"pruning": "none", "logger": "none"}  # the empty option of a group


def check_groups(words: Sequence[str]) -> None:
    """Check that groups are set to names: Hydra fails without a clear error on `logger=null`.

    Raises:
        ConfigError: With the group and its options.
    """
    conf = config_dir("conf")
    settings: Any = OmegaConf.to_container(
        OmegaConf.load(conf / "app" / "train.yaml"), resolve=False
    )
    for word in words:
        group, equals, _ = word.partition("=")
        if not equals or group not in (*groups(settings), "recipe"):
            continue
        try:
            [override] = OverridesParser.create().parse_overrides([word])
        except HydraException:
            continue  # Hydra raises a clear error later
        if override.is_sweep_override():
            continue
        value = override.value()
        names = value if isinstance(value, list) else [value]
        if group == "sweep" and value is None:
            raise ConfigError("sweep=null chooses nothing: leave it out")
        if not all(isinstance(name, str) for name in names):
            folders = (conf / "app" / group, conf / "shared" / group)
            options = sorted(path.stem for folder in folders for path in folder.glob("*.yaml"))
            nothing = f" ({_NOTHING[group]} for nothing)" if group in _NOTHING else ""
            raise ConfigError(
                f"{word}: {group} takes the name of an option{nothing}, there are: "
                f"{', '.join(options)}"
            )


# override -> Hydra plugin, and the extra of regrow that installs it
_NEEDED = {
    "hydra/launcher=joblib": ("hydra_joblib_launcher", "sweep"),
    "hydra/launcher=submitit_local": ("hydra_submitit_launcher", "slurm"),
    "hydra/launcher=submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "hydra/sweeper=optuna": ("hydra_optuna_sweeper", "optuna"),
    "sweep=optuna": ("hydra_optuna_sweeper", "optuna"),
}


def check_plugins(words: Sequence[str]) -> None:
    """Check that the plugins of the launcher and sweeper are installed.

    Raises:
        ConfigError: With what to install.
    """
    for word in words:
        key, _, value = word.partition("=")
        names = re.findall(r"\w+", value) if key == "sweep" else [value]
        found = (_NEEDED.get(f"{key}={name}") for name in names)  # sweep=[optuna,seeds] is two
        plugin, extra = next((one for one in found if one), ("", ""))
        if plugin and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
            raise ConfigError(
                f'{word} needs {plugin.replace("_", "-")}: pip install "regrow[{extra}]"'
            )
