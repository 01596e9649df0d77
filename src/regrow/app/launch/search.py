# SPDX-License-Identifier: MIT
"""Objectives of a hyperparameter search, and Optuna studies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

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
    """Check the names of objectives and return them as a list."""
    listed = [given] if isinstance(given, str) else given
    names = list(listed) if isinstance(listed, Sequence) else []
    allowed = f"(objectives are {', '.join(DIRECTIONS)}: a search never sees the test set)"
    if not names or len({*map(str, names)}) < len(names):
        raise ConfigError(f"objectives must be names, each once, got {given!r}: {allowed}")
    for name in names:
        if name not in DIRECTIONS:
            hint = suggest(str(name), DIRECTIONS)
            raise ConfigError(f"objectives has {name!r}: {hint} {allowed}")
    return [str(name) for name in names]


def check_measured(cfg: DictConfig) -> None:
    """Check before training that the job will measure its objectives."""
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


def is_search(sweeper: Mapping[str, Any]) -> bool:
    """Whether a sweeper optimizes objectives: all but Hydra's BasicSweeper."""
    return not str(sweeper["_target_"]).endswith(".BasicSweeper")


def prepare(config: DictConfig, folder: Path) -> None:
    """Complete the settings of Optuna's sweeper in place; other sweepers are not changed.

    The study is stored in the sweep's folder, so that the same command resumes it. A failed trial
    does not stop the others.
    """
    names = check_objectives(config.objectives)
    sweeper = config.hydra.sweeper
    if not str(sweeper._target_).endswith(".OptunaSweeper"):
        return
    sweeper.direction = _directions(sweeper.direction, names)
    if sweeper.storage is None:
        sweeper.storage = f"sqlite:///{folder / 'optuna.db'}"
    if sweeper.study_name is None:
        sweeper.study_name = folder.name
    sweeper.max_failure_rate = sweeper.max_failure_rate or 1.0
    requeue_running(str(sweeper.storage), str(sweeper.study_name))


def requeue_running(storage: str, study_name: str) -> int:
    """Queue again the trials that a stopped search left running; return their number."""
    import optuna

    if study_name not in {s.study_name for s in optuna.get_all_study_summaries(storage)}:
        return 0
    study = optuna.load_study(study_name=study_name, storage=storage)
    state = optuna.trial.TrialState
    running = study.get_trials(deepcopy=False, states=(state.RUNNING,))
    for trial in running:
        study.tell(trial.number, state=state.FAIL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.enqueue_trial(trial.params)
    return len(running)


def _directions(given: Any, names: list[str]) -> list[str]:
    """Directions of the objectives; Hydra's default, one "minimize", counts as not given."""
    directions = [DIRECTIONS[name] for name in names]
    listed = list(given) if OmegaConf.is_list(given) else [given]
    written = [str(getattr(one, "name", one)) for one in listed]
    if written not in (directions, ["minimize"]):
        raise ConfigError(
            f"hydra.sweeper.direction={written} does not fit objectives={names}, whose directions "
            f"are {directions}: leave it out"
        )
    return directions
