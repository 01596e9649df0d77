# SPDX-License-Identifier: MIT
"""Run `train` and `plan` as Hydra apps, and compose a job without one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from regrow.app.config.command_line import (
    check_single_values,
    compose_words,
    defer_to_jobs,
    prepare,
)
from regrow.app.config.instantiate import root_cause
from regrow.app.config.schema import check_schema
from regrow.app.launch.failures import Job, record_failure
from regrow.app.launch.search import check_measured, check_objectives, is_search, measured
from regrow.app.launch.sweep import finish_sweep
from regrow.app.training.processes import handling
from regrow.io.files import write_text
from regrow.utils.errors import ConfigError, RegrowError, one_line
from regrow.utils.paths import config_dir

# A plan writes no files.
NO_FILES = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout")
_command_line: list[str] = []


def launch(command: str, args: list[str]) -> None:
    """Compose the configuration from overrides and run the command, once or as a sweep."""
    for word in args if command == "plan" else ():
        if word in ("-m", "--multirun") or word.startswith("sweep="):
            raise ConfigError(f"plan shows a single configuration: leave out {word}")
    args = prepare(command, args)
    check_single_values(command, args)
    extra = NO_FILES if command == "plan" else ()
    folder = str(config_dir("conf") / "app")
    run = hydra.main(version_base="1.3", config_path=folder, config_name="train")
    # Hydra reads sys.argv, without the sub-command.
    _command_line[:] = sys.argv
    sys.argv[1:] = [*extra, *defer_to_jobs(args)]
    try:
        with handle_sigterm():
            run(JOBS[command])()
    except OmegaConfBaseException as error:  # in the folder's name, read before the job
        raise ConfigError(f"a setting cannot be read: {error}") from error
    except KeyboardInterrupt:
        print("stopped: the same command resumes the run", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        sys.argv[:] = _command_line
        succeeded = finish_sweep()
    if not succeeded:
        raise SystemExit(1)


def handle_sigterm() -> AbstractContextManager[None]:
    """Raise SystemExit on SIGTERM, so that `finally` blocks stop the processes of a launcher."""
    return handling(_stop, signal.SIGTERM)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def compose_job(words: Sequence[str], folder: Path) -> DictConfig:
    """Compose a job as `regrow train WORDS hydra.run.dir=FOLDER` does, and save it there.

    Hydra's own configuration is set too, as in its apps.
    """
    args = prepare("auto", words)
    check_single_values("auto", args)
    with hydra.initialize_config_dir(str(config_dir("conf") / "app"), version_base="1.3"):
        cfg = compose_words(args, with_hydra=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
        cfg.hydra.runtime.cwd = os.getcwd()
        cfg.hydra.runtime.version = hydra.__version__
        cfg.hydra.job.num = 0
    HydraConfig.instance().set_config(cfg)
    own = cfg.hydra
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.threads = threads_of(cfg.threads, own.launcher, own.sweeper, cores())
    check_schema(cfg)
    write_text(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(cfg))
    return cfg


def cores() -> int:
    """Count the cores that this process may use; a cluster may allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of(
    given: int | str | None, launcher: Mapping[str, Any], sweeper: Mapping[str, Any], available: int
) -> int | None:
    """Compute the CPU threads of one job from `threads`; None: torch's default.

    `launcher` and `sweeper` are Hydra's settings, `available` the cores that this process may use.

    Example:
        >>> threads_of("auto", {"_target_": "x.JoblibLauncher", "n_jobs": 2}, {}, 8)
        4
    """
    if isinstance(given, str):
        jobs = _simultaneous_jobs(launcher, sweeper, available)
        return launcher.get("cpus_per_task") or max(1, available // jobs)
    return given


def _simultaneous_jobs(
    launcher: Mapping[str, Any], sweeper: Mapping[str, Any], available: int
) -> int:
    kind = str(launcher["_target_"]).rpartition(".")[2]
    if kind == "JoblibLauncher":
        given = int(launcher["n_jobs"])
        jobs = given if given > 0 else available + 1 + given  # joblib: -1 is one job a core
        batch = sweeper.get("n_jobs")
        return max(1, min(jobs, batch or jobs))
    if kind == "LocalLauncher" and launcher.get("cpus_per_task") is None:
        raise ConfigError(
            "threads=auto: the number of simultaneous jobs is unknown, submitit_local starts all: "
            "write hydra.launcher.cpus_per_task=1, or threads=1"
        )
    return 1  # one after another, or each on a separate node


def empty_pruning(cfg: DictConfig) -> None:
    """Leave out what a recipe sets of its method where `pruning=none` is chosen instead."""
    own, node = HydraConfig.get(), cfg.pruning
    chosen = own.runtime.choices.get("pruning")
    if chosen != "none" or not isinstance(node, DictConfig) or "_target_" in node:
        return
    words = [word for word in own.overrides.task if word.lstrip("+").startswith("pruning.")]
    if words and own.mode != RunMode.MULTIRUN:  # else of the other options of a sweep
        raise ConfigError(f"{words[0]} has no effect with pruning=none: leave one of them out")
    cfg.pruning = {}


def plain_errors(job: Job) -> Job:
    """Print errors of regrow that a job raises as one line, and exit with status 1."""

    @wraps(job)
    def run(cfg: DictConfig) -> object:
        if _command_line:
            # Lightning starts the other ranks from sys.argv, which needs the sub-command.
            sys.argv[:] = _command_line
        try:
            return job(cfg)
        except Exception as error:
            cause, message = root_cause(error)
            if not isinstance(cause, RegrowError) or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(f"error: {one_line(message)}", file=sys.stderr)
            raise SystemExit(1) from error

    return run


@plain_errors
@record_failure
def train(cfg: DictConfig) -> object:
    """Run the job of `regrow train`; return the objectives in a search, else the result."""
    empty_pruning(cfg)
    check_schema(cfg)
    hydra = HydraConfig.get()
    names, search = check_objectives(cfg.objectives), is_search(hydra.sweeper)
    if search:
        check_measured(cfg)
    cfg.threads = threads_of(cfg.threads, hydra.launcher, hydra.sweeper, cores())
    from regrow.app.experiment.run import train

    result = train(cfg)
    return measured(result, names) if search else result


@plain_errors
def plan(cfg: DictConfig) -> object:
    """Run the job of `regrow plan`."""
    empty_pruning(cfg)
    check_schema(cfg)
    from regrow.app.experiment.plan import plan

    plan(cfg)
    return None


JOBS: dict[str, Job] = {"train": train, "plan": plan}
