# SPDX-License-Identifier: MIT
"""Run `train` and `plan` as Hydra apps."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from regrow.app.config.composition import check_composition
from regrow.app.config.instantiate import root_cause
from regrow.app.config.overrides import check_groups, check_plugins, choose_own, defer_to_jobs
from regrow.app.config.recipes import check_names, register, replace_recipe_files
from regrow.app.config.schema import check_schema
from regrow.app.launch.failures import Job, record_failure
from regrow.app.launch.search import check_measured, check_objectives, is_search, measured
from regrow.app.launch.sweep_callback import finish_sweep
from regrow.utils.errors import ConfigError, RegrowError
from regrow.utils.paths import config_dir

# A plan writes no files.
NO_FILES = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout")
_command_line: list[str] = []


def launch(command: str, args: list[str]) -> None:
    """Compose the configuration from overrides and run the command, once or as a sweep."""
    if command == "plan":
        _check_no_sweep(args)
    check_plugins(args)
    args, given = replace_recipe_files(args)
    check_names(args, given)
    check_groups(args)
    args, own = choose_own(args)
    register(given, own)
    check_composition(command, args)
    extra = NO_FILES if command == "plan" else ()
    run = hydra.main(
        version_base="1.3", config_path=str(config_dir("conf") / "app"), config_name="train"
    )
    # Hydra reads sys.argv, without the sub-command.
    _command_line[:] = sys.argv
    sys.argv[1:] = [*extra, *defer_to_jobs([*map(quote_value, args)])]
    try:
        with handle_sigterm():
            run(JOBS[command])()
    except OmegaConfBaseException as error:  # in the folder's name, read before the job
        reason = " ".join(str(error).split())
        raise ConfigError(f"a setting cannot be read: {reason}") from error
    except KeyboardInterrupt:
        print("stopped: the same command resumes the run", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        sys.argv[:] = _command_line
        succeeded = finish_sweep()
    if not succeeded:
        raise SystemExit(1)


@contextmanager
def handle_sigterm() -> Iterator[None]:
    """Raise SystemExit on SIGTERM, so that `finally` blocks stop the processes of a launcher."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def cores() -> int:
    """Count the cores that this process may use; a cluster may allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of(
    given: int | str | None, launcher: Mapping[str, Any], sweeper: Mapping[str, Any], available: int
) -> int | None:
    """Compute the CPU threads of one job.

    Args:
        given: A number, "auto", or None for torch's default.
        launcher: Hydra's launcher settings.
        sweeper: Hydra's sweeper settings.
        available: Cores that this process may use.

    Raises:
        ConfigError: If the number of simultaneous jobs is unknown.

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


def _check_no_sweep(args: Sequence[str]) -> None:
    for word in args:
        if word in ("-m", "--multirun") or word.startswith("sweep="):
            raise ConfigError(f"plan shows a single configuration: leave out {word}")


def quote_value(word: str) -> str:
    """Quote the path in `start=`: the folder of a run contains `=`, which Hydra needs quoted."""
    key, _, value = word.partition("=")
    return f"{key}='{value}'" if key == "start" and "=" in value and value[0] not in "'\"" else word


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
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(1) from error

    return run


@plain_errors
@record_failure
def train(cfg: DictConfig) -> object:
    """Run the job of `regrow train`; return the objectives in a search, else the result."""
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
    check_schema(cfg)
    from regrow.app.experiment.plan import plan

    plan(cfg)
    return None


JOBS: dict[str, Job] = {"train": train, "plan": plan}
