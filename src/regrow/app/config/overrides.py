# SPDX-License-Identifier: MIT
"""Command-line overrides: groups, swept groups, plugins."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from regrow.app.config.schema import GROUPS, OWN_GROUPS
from regrow.utils.errors import ConfigError
from regrow.utils.paths import config_dir

_PLAIN = re.compile(r"[A-Za-z_]\w*(\.\w+)+=")  # a setting inside a group, without + or ~
_ENCLOSED = re.compile(r"""\[.*\]|\{.*\}|\(.*\)|'.*'|".*\"""")  # commas in there do not sweep
_FUNCTION = re.compile(r"(choice|range|interval|tag|glob|shuffle|sort)\(")
_EMPTY = {"pruning": "none", "logger": "none"}  # the empty option of a group
# override -> Hydra plugin, and the extra of regrow that installs it
_PLUGINS = {
    "hydra/launcher=joblib": ("hydra_joblib_launcher", "sweep"),
    "hydra/launcher=submitit_local": ("hydra_submitit_launcher", "slurm"),
    "hydra/launcher=submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "hydra/sweeper=optuna": ("hydra_optuna_sweeper", "optuna"),
    "sweep=optuna": ("hydra_optuna_sweeper", "optuna"),
}


def defer_to_jobs(args: Sequence[str]) -> list[str]:
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
    if not any(_varies_a_group(word) for word in args):
        return list(args)
    return [_choice(word) if _PLAIN.match(word) else word for word in args]


def _varies_a_group(word: str) -> bool:
    key, _, value = word.partition("=")
    if key == "sweep":
        return "recipe" in preset_settings(value)
    return "." not in key and not key.startswith(("-", "hydra/")) and _is_swept(value)


def preset_settings(presets: str) -> dict[str, str]:
    """Return the settings that presets of regrow sweep over, such as "[compare,seeds]"."""
    settings: dict[str, str] = {}
    for name in re.findall(r"\w+", presets):
        path = config_dir("conf") / "app" / "sweep" / f"{name}.yaml"
        node = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
        settings |= OmegaConf.select(node, "hydra.sweeper.params") or {}
    return settings


def _choice(word: str) -> str:
    key, _, value = word.partition("=")
    unchanged = key.startswith("hydra.") or not value or _is_swept(value)
    return word if unchanged else f"{key}=choice({value})"


def _is_swept(value: str) -> bool:
    return "," in _ENCLOSED.sub("", value) or _FUNCTION.match(value) is not None


def choose_own(args: Sequence[str]) -> tuple[list[str], set[str]]:
    """Choose the empty option `own` of a group whose `_target_` is given without an option.

    Otherwise the arguments of the default option would be passed to the new target. Settings of
    such a group, and of data=datasets, need no `+`.

    Returns:
        The command line, and the groups that start empty, in which settings of a recipe are
        ignored.

    Example:
        >>> choose_own(["recipe=digits/gmp", "model._target_=mine.Net", "model.depth=2"])
        (['model=own', 'recipe=digits/gmp', 'model._target_=mine.Net', '++model.depth=2'], \
{'model'})
    """
    keys = [word.lstrip("+").partition("=")[0] for word in args]
    own = {group for group in OWN_GROUPS if f"{group}._target_" in keys and group not in keys}
    free = own | ({"data"} if "data=datasets" in args else set())

    def added(word: str, key: str) -> str:
        group, _, setting = key.partition(".")
        return (
            f"++{word.lstrip('+')}" if group in free and setting not in ("", "_target_") else word
        )

    changed = [added(word, key) for word, key in zip(args, keys, strict=True)]
    return [*(f"{group}=own" for group in sorted(own)), *changed], own


def check_groups(args: Sequence[str]) -> None:
    """Check that groups are set to names: Hydra fails without a clear error on `logger=null`.

    Raises:
        ConfigError: With the group and its options.
    """
    for word in args:
        group, equals, _ = word.partition("=")
        if not equals or group not in (*GROUPS, "sweep", "recipe"):
            continue
        try:
            [override] = OverridesParser.create().parse_overrides([word])
        except HydraException:
            continue  # Hydra raises a clear error later
        if override.is_sweep_override():
            continue
        value = override.value()
        if group == "sweep" and value is None:
            raise ConfigError("sweep=null chooses nothing: leave it out")
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) for name in names):
            options = sorted(path.stem for path in config_dir("conf").glob(f"*/{group}/*.yaml"))
            empty = f" ({_EMPTY[group]} for nothing)" if group in _EMPTY else ""
            raise ConfigError(
                f"{word}: {group} takes the name of an option{empty}, there are: "
                f"{', '.join(options)}"
            )


def check_plugins(args: Sequence[str]) -> None:
    """Check that the plugins of the launcher and sweeper are installed.

    Raises:
        ConfigError: With what to install.
    """
    for word in args:
        key, _, value = word.partition("=")
        names = re.findall(r"\w+", value) if key == "sweep" else [value]  # sweep=[optuna,seeds]
        for plugin, extra in (_PLUGINS.get(f"{key}={name}", ("", "")) for name in names):
            if plugin and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
                raise ConfigError(
                    f'{word} needs {plugin.replace("_", "-")}: pip install "regrow[{extra}]"'
                )
