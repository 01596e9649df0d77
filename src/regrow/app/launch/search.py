# SPDX-License-Identifier: MIT
"""Set up Optuna studies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from regrow.app.launch.objectives import DIRECTIONS, check_objectives
from regrow.utils.errors import ConfigError


def is_search(sweeper: Mapping[str, Any]) -> bool:
    """Whether a sweeper optimizes objectives: all but Hydra's BasicSweeper."""
    return not str(sweeper["_target_"]).endswith(".BasicSweeper")


def prepare(config: DictConfig, folder: Path) -> None:
    """Complete the settings of Optuna's sweeper in place; other sweepers are not changed.

    The study is stored in the sweep's folder, so that the same command resumes it. A failed trial
    does not stop the others.

    Raises:
        ConfigError: If given directions do not fit the objectives.
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
