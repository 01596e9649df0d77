# SPDX-License-Identifier: MIT
"""Runs a command under Hydra, and turns errors of ours into one clear message."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from functools import wraps

import hydra
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf

from regrow._paths import config_dir
from regrow.app.recipes import check_names, register
from regrow.errors import ConfigError, RegrowError

Job = Callable[[DictConfig], object]

# Looking at a plan writes nothing: no folder, no copy of the configuration, no log file.
LOOK_ONLY = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=stdout",
)

LONGEST = 180  # a folder's name may have 255 bytes

_command_line: list[str] = []


def launch(command: str, words: list[str]) -> None:
    """Composes the configuration from `words` and runs the command on it, once or as a sweep."""
    if command == "plan" and {"-m", "--multirun"}.intersection(words):
        raise ConfigError("plan shows one configuration: leave out -m")
    check_names(words)
    register()
    extra = LOOK_ONLY if command == "plan" else ()
    run = hydra.main(
        version_base="1.3", config_path=str(config_dir("conf") / "app"), config_name="train"
    )
    # Hydra reads sys.argv and knows nothing of commands.
    _command_line[:] = sys.argv
    sys.argv[1:] = [*extra, *map(quoted, words)]
    try:
        run(JOBS[command])()
    finally:
        sys.argv[:] = _command_line


def quoted(word: str) -> str:
    """A path of a run's folder holds `=`, which Hydra reads only in quotes."""
    key, _, value = word.partition("=")
    return f"{key}='{value}'" if key == "start" and "=" in value and value[0] not in "'\"" else word


def short(folder: str) -> str:
    """Overrides as a folder's name; a hash stands for the end of long ones."""
    if len(folder) <= LONGEST:
        return folder
    return f"{folder[:LONGEST]}...{hashlib.sha256(folder.encode()).hexdigest()[:8]}"


# Here and not in launch(): a job that a sweep runs in another process names its folder there.
OmegaConf.register_new_resolver("regrow.short", short, replace=True)


def plainly(job: Job) -> Job:
    """Lets errors of ours leave the job as one message, whatever Hydra wrapped them in."""

    @wraps(job)
    def run(cfg: DictConfig) -> object:
        if _command_line:
            # Lightning starts the other ranks from sys.argv: they need the command back.
            sys.argv[:] = _command_line
        try:
            return job(cfg)
        except Exception as error:
            message = _message(error)
            if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            raise CompactHydraException(message) from error

    return run


def _message(error: BaseException) -> str | None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RegrowError):
        cause = cause.__cause__
    if cause is None:
        return None
    _, _, key = str(error).rpartition("full_key: ")
    where = f" (in {key})" if isinstance(error, InstantiationException) else ""
    return f"error: {cause}{where}"


@plainly
def train(cfg: DictConfig) -> object:
    """The job of `regrow train`."""
    from regrow.app.train import train

    return train(cfg)


@plainly
def plan(cfg: DictConfig) -> object:
    """The job of `regrow plan`."""
    from regrow.app.planning import plan

    plan(cfg)
    return None


JOBS: dict[str, Job] = {"train": train, "plan": plan}
