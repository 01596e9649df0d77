# SPDX-License-Identifier: MIT
"""Check the types and ranges of settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regrow.app.config.recipes import groups
from regrow.utils.errors import ConfigError, check_count, check_positive
from regrow.utils.paths import config_dir

_MADE = ("model", "data", "optimizer", "scheduler", "trainer")  # by their `_target_`


_WHOLE = {"accumulate_grad_batches": 1, "max_epochs": -1, "max_steps": -1}


_MAY_BE_EMPTY = ("scheduler", "pruning", "logger")


def check_schema(cfg: DictConfig) -> None:
    """Check that a configuration has all settings, of the right types.

    Raises:
        ConfigError: With the name of the first setting that is missing or wrong.
    """
    _check_resolved(cfg)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    own, chosen = _settings()
    for key in (*own, *chosen):
        if key not in plain:
            raise ConfigError(f"{key} was removed, but every run needs it: leave out ~{key}")
    for group in chosen:
        _check_group(group, plain[group])
    for key, inner in own.items():
        if isinstance(inner, dict) and inner:
            _check_part(key, plain[key], inner)
    for name, least in _WHOLE.items():  # others fail late, without a clear error
        if (value := plain["trainer"].get(name)) is not None:
            check_count(f"trainer.{name}", value, least=least)
    for name, check in _VALUES.items():
        value = plain
        for part in name.split("."):
            value = value[part]
        check(name, value)


def _check_resolved(cfg: DictConfig) -> None:
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise ConfigError(f"{', '.join(missing)} must be given: write {missing[0]}=VALUE")
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"a setting cannot be read: {' '.join(str(error).split())}") from error


@functools.cache
def _settings() -> tuple[dict[str, Any], list[str]]:
    """The settings of train.yaml with their defaults, and the groups."""
    path = config_dir("conf") / "app" / "train.yaml"
    found: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    names = [name for name in groups(found) if name != "sweep"]
    return {key: found[key] for key in found if key not in ("defaults", "hydra")}, names


def _check_group(group: str, node: Any) -> None:
    if group == "pruning" and isinstance(node, str):
        return  # a group that Hydra has not found: build_pruning raises
    if not node and group in _MAY_BE_EMPTY:
        return
    if not isinstance(node, dict):
        raise ConfigError(
            f"{group} must be one of its options or a mapping, got {node!r}: `regrow train --help` "
            "names them"
        )
    if group in _MADE and "_target_" not in node:
        raise ConfigError(
            f"{group} has no _target_, so it cannot be instantiated: choose one of its options "
            f"({group}=...), or write {group}._target_=..."
        )
    for name, inner in node.items() if group == "callbacks" else ():
        if inner and not (isinstance(inner, dict) and "_target_" in inner):
            raise ConfigError(
                f"callbacks.{name} must be a mapping with a _target_, got {inner!r}: to drop it "
                f"write ~callbacks.{name}"
            )


def _check_part(key: str, node: Any, inner: Mapping[str, Any]) -> None:
    names = ", ".join(f"{key}.{name}" for name in inner)
    if not isinstance(node, dict):
        raise ConfigError(f"{key} must hold {names}, got {node!r}: write them one by one")
    for name in inner:
        if name not in node:
            raise ConfigError(f"{key}.{name} was removed, but is needed: leave out ~{key}.{name}")


def _optional(check: Callable[[str, Any], object]) -> Callable[[str, Any], object]:
    return lambda name, value: None if value is None else check(name, value)


def _threads(name: str, value: Any) -> object:
    return value if value == "auto" else check_count(name, value)


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")


def _string(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, got {value!r}")


def _below_one(name: str, value: Any) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 <= float(value) < 1):
        raise ConfigError(f"{name} must be a number in [0, 1), got {value!r}: write 0.1 for 10 %")


_VALUES: Mapping[str, Callable[[str, Any], object]] = {
    "seed": lambda name, value: check_count(name, value, least=0),
    "start": _optional(_string),
    "dense_epochs": _optional(lambda name, value: check_count(name, value, least=0)),
    "finetune.lr": _optional(lambda name, value: check_positive(name, value, "0.01")),
    "finetune.batch_size": _optional(check_count),
    "label_smoothing": _below_one,
    "threads": _optional(_threads),
    "force": _boolean,
    "latency.batch": check_count,
    "latency.repeats": check_count,
    "paths.controls": _string,
}
