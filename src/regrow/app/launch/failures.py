# SPDX-License-Identifier: MIT
"""Failed.json."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from regrow.app.config.run_dirs import as_words
from regrow.io.files import write_json
from regrow.utils.errors import BusyError, RegrowError, StateError

Job = Callable[[DictConfig], object]


FILE = "failed.json"


_log = logging.getLogger("regrow")


@dataclass(frozen=True)
class Failed:
    """What a job of a sweep returns when it failed, so that the others go on.

    Attributes:
        error: The type of the error.
        message: What it says.
    """

    error: str
    message: str


def root_cause(error: BaseException) -> tuple[BaseException, str]:
    """The error that tells most, and its message: ours, whatever Hydra wrapped it in.

    Example:
        >>> root_cause(ValueError("no"))
        (ValueError('no'), 'no')
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RegrowError):
        cause = cause.__cause__
    if cause is None:
        return error, str(error)
    _, _, key = str(error).rpartition("full_key: ")
    where = f" (in {key})" if isinstance(error, InstantiationException) else ""
    return cause, f"{cause}{where}"


def record_failure(job: Job) -> Job:
    """Has a job that fails leave `failed.json`; in a sweep it then returns instead of raising.

    What stops a job from outside (KeyboardInterrupt, SystemExit) is no failure.
    """

    @wraps(job)
    def run(cfg: DictConfig) -> object:
        hydra = HydraConfig.get()
        path = Path(hydra.runtime.output_dir) / FILE
        path.unlink(missing_ok=True)
        try:
            return job(cfg)
        except Exception as error:
            cause, message = root_cause(error)
            failed = Failed(type(cause).__name__, message)
            if not isinstance(cause, BusyError):  # then the folder is another process's
                _leave(path, _content(cfg, failed))
            if hydra.mode != RunMode.MULTIRUN:
                raise
            ours = isinstance(cause, RegrowError) and os.environ.get("HYDRA_FULL_ERROR") != "1"
            _log.error("this job failed: %s", message, exc_info=None if ours else error)
            return failed

    return run


def _leave(path: Path, content: dict[str, object]) -> None:
    """Writes the note; a disk that takes none hides no error and stops no other job."""
    try:
        write_json(path, content)
    except StateError as error:
        _log.error("the reason is not kept: %s", error)


def _content(cfg: DictConfig, failed: Failed) -> dict[str, object]:
    hydra, seed = HydraConfig.get(), OmegaConf.select(cfg, "seed")
    return {
        "recipe": str(hydra.runtime.choices["recipe"]),
        "overrides": as_words(hydra.overrides.task),
        "seed": seed if isinstance(seed, int) else str(seed),
        "error": failed.error,
        "message": failed.message,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
