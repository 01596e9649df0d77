# SPDX-License-Identifier: MIT
"""The settings of conf/app/train.yaml: their types, and the checks that types cannot express."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regrow.utils.errors import ConfigError, check_count, check_positive

GROUPS = (
    "model", "data", "task", "optimizer", "scheduler", "pruning", "trainer", "callbacks", "logger",
)  # fmt: skip
OWN_GROUPS = ("model", "data", "task")  # whose targets may be the user's own
_MAY_BE_EMPTY = ("scheduler", "pruning", "logger")
_OPTIONAL_TARGET = ("pruning", "callbacks", "logger")


@dataclass
class Finetune:
    """Settings of the fit that starts from a trained network; None: as in the dense training."""

    lr: int | float | None = MISSING
    batch_size: int | None = MISSING


@dataclass
class Latency:
    """How networks are timed: images per batch, number of passes."""

    batch: int = MISSING
    repeats: int = MISSING


@dataclass
class Paths:
    """Folders: `controls` has the dense networks that runs share."""

    controls: str = MISSING


@dataclass
class Settings:
    """Types of the settings of `regrow train`; train.yaml has their defaults and meanings.

    The nine groups hold nodes with a `_target_`, whose settings their classes check. Unions keep a
    number as it is written: 1 and 1.0 have different hashes.
    """

    model: Any = MISSING
    data: Any = MISSING
    task: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    pruning: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    seed: int = MISSING
    start: str | None = MISSING
    dense_epochs: int | None = MISSING
    finetune: Finetune = field(default_factory=Finetune)
    label_smoothing: int | float = MISSING
    monitor: str = MISSING
    monitor_mode: str = MISSING
    threads: int | str | None = MISSING
    force: bool = MISSING
    latency: Latency = field(default_factory=Latency)
    paths: Paths = field(default_factory=Paths)
    objectives: Any = MISSING
    about: dict[str, Any] = field(default_factory=dict)


def check_schema(cfg: DictConfig) -> None:
    """Check that a composed configuration is complete, and check its groups and ranges."""
    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigError(f"{', '.join(missing)} must be given: write {missing[0]}=VALUE")
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"a setting cannot be read: {' '.join(str(error).split())}") from error
    if removed := [one.name for one in fields(Settings) if one.name not in plain]:
        raise ConfigError(
            f"{removed[0]} was removed, but every run needs it: leave out ~{removed[0]}"
        )
    for group in GROUPS:
        _check_group(group, plain[group])
    for name, check in _RANGES.items():
        parent, _, key = name.rpartition(".")
        value = (plain[parent] if parent else plain).get(key)
        if value is not None:
            check(name, value)
    last = str(plain["monitor"]).rpartition("/")[2]
    if (better := _BETTER.get(last)) and plain["monitor_mode"] != better:
        raise ConfigError(
            f"monitor_mode={plain['monitor_mode']} would choose the worst {last}: write "
            f"monitor_mode={better}"
        )


def _check_group(group: str, node: Any) -> None:
    if group == "pruning" and isinstance(node, str):
        return  # a group that Hydra has not found: build_pruning raises
    if not node and group in _MAY_BE_EMPTY:
        return
    if not isinstance(node, dict):
        raise ConfigError(
            f"{group} must be one of its options or a mapping, got {node!r}: `regrow train --help` "
            "lists them"
        )
    if group not in _OPTIONAL_TARGET and "_target_" not in node:
        raise ConfigError(
            f"{group} has no _target_, so it cannot be instantiated: choose one of its options "
            f"({group}=...), or write {group}._target_=..."
        )
    for name, inner in node.items() if group == "callbacks" else ():
        if inner and not (isinstance(inner, dict) and "_target_" in inner):
            raise ConfigError(
                f"callbacks.{name} must be a mapping with a _target_, got {inner!r}: to remove it "
                f"write ~callbacks.{name}"
            )


def _check_threads(name: str, value: Any) -> None:
    if value != "auto" and not (isinstance(value, int) and value > 0):
        raise ConfigError(
            f"{name} must be a whole number of at least 1, auto or null, got {value!r}: write "
            "threads=1, or threads=auto to share the cores among simultaneous jobs"
        )


def _check_seed(name: str, value: Any) -> None:
    if check_count(name, value, least=0) >= 2**32:
        raise ConfigError(f"{name} must be below 2**32, got {value}: write {name}=0")


def _check_some(name: str, value: Any) -> None:
    if value == 0 and not isinstance(value, bool):
        raise ConfigError(
            f"{name}=0 leaves no batches to train on or to choose a checkpoint by: leave it out"
        )


def _check_clipping(name: str, value: Any) -> None:
    if value != 0:  # 0 is off
        check_positive(name, value, "1.0")


_RANGES: Mapping[str, Callable[[str, Any], object]] = {
    "seed": _check_seed,
    "dense_epochs": partial(check_count, least=0),
    "finetune.lr": partial(check_positive, example="0.01"),
    "finetune.batch_size": check_count,
    "threads": _check_threads,
    "latency.batch": check_count,
    "latency.repeats": check_count,
    # a Trainer fails late on these, without a clear error
    "trainer.accumulate_grad_batches": check_count,
    "trainer.max_epochs": partial(check_count, least=-1),
    "trainer.max_steps": partial(check_count, least=-1),
    "trainer.limit_val_batches": _check_some,
    "trainer.limit_train_batches": _check_some,
    "trainer.gradient_clip_val": _check_clipping,
}
_BETTER = {"accuracy": "max", "loss": "min"}  # of metrics with such a name
