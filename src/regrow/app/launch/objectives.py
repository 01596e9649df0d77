# SPDX-License-Identifier: MIT
"""Objectives of a hyperparameter search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from regrow.utils.errors import ConfigError, StateError, suggest

DIRECTIONS = {
    "val_accuracy": "maximize",
    "val_loss": "minimize",
    "sparsity": "maximize",
    "sparsity_total": "maximize",
    "compression": "maximize",
    "theoretical_speedup": "maximize",
    "measured_speedup": "maximize",
    "params": "minimize",
    "macs": "minimize",
    "bytes": "minimize",
    "latency_ms": "minimize",
}
_VALIDATED = ("val_accuracy", "val_loss")


def check_objectives(given: Any) -> list[str]:
    """Check the names of objectives and return them as a list.

    Raises:
        ConfigError: With the allowed names.

    Example:
        >>> check_objectives(["val_accuracy", "sparsity"])
        ['val_accuracy', 'sparsity']
    """
    if not (given is None or isinstance(given, str | Sequence)):
        raise ConfigError(f"objectives must be names, each once, got {given!r}: {_allowed()}")
    names = [given] if isinstance(given, str) else list(given or ())
    if not names or len({*map(str, names)}) < len(names):
        raise ConfigError(f"objectives must be names, each once, got {names}: {_allowed()}")
    for name in names:
        if name not in DIRECTIONS:
            hint = suggest(str(name), DIRECTIONS)
            raise ConfigError(f"objectives has {name!r}: {hint} {_allowed()}")
    return [str(name) for name in names]


def check_measured(cfg: DictConfig) -> None:
    """Check before training that the job will measure its objectives.

    Raises:
        ConfigError: With the reason, and what to write.
    """
    names = check_objectives(cfg.objectives)
    if not cfg.pruning:
        raise ConfigError(
            f"objectives={names} need a pruned network, and this recipe does not prune: "
            "choose one with pruning, or write pruning=gmp"
        )
    if cfg.trainer.get("max_epochs") == 0 and {*names} & {*_VALIDATED}:
        raise ConfigError(
            f"objectives={names} need validation, and trainer.max_epochs=0 validates nothing: "
            "write trainer.max_epochs=1"
        )


def measured(result: Mapping[str, Any], names: Sequence[str]) -> float | tuple[float, ...]:
    """Return the objectives of a result: a number, or a tuple for several.

    Validation accuracy and loss are those of its last level.

    Example:
        >>> result = {"levels": [{"val_accuracy": 0.8}, {"val_accuracy": 0.7}], "sparsity": 0.9}
        >>> measured(result, ["val_accuracy", "sparsity"])
        (0.7, 0.9)
    """
    values = tuple(_value(result, name) for name in names)
    return values if len(values) > 1 else values[0]


def _value(result: Mapping[str, Any], name: str) -> float:
    if name in _VALIDATED:
        levels = result["levels"]
        if not levels or name not in levels[-1]:
            raise StateError(f"{name} was never measured: the fit validated nothing")
        return float(levels[-1][name])
    if name == "latency_ms":
        return float(result["pruned"]["latency_ms"]["median"])
    return float(result[name] if name in result else result["pruned"][name])


def _allowed() -> str:
    return f"(objectives are {', '.join(DIRECTIONS)}: a search never sees the test set)"
