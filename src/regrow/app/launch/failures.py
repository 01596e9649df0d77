# SPDX-License-Identifier: MIT
"""Record failed jobs in failed.json."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from regrow.app.config.instantiate import root_cause
from regrow.app.config.run_dirs import override_strings
from regrow.io.files import write_json
from regrow.report.load import FAILED
from regrow.utils.errors import BusyError, ConfigError, RegrowError, StateError

Job = Callable[[DictConfig], object]
_BEFORE_A_START = {".hydra", ".lock", "regrow.log"}
_log = logging.getLogger("regrow")


@dataclass(frozen=True)
class Failed:
    """Message of the error of a job, which returns it so that the sweep continues."""

    message: str


def record_failure(job: Job) -> Job:
    """Write `failed.json` when a job fails; in a sweep, return `Failed` instead of raising.

    KeyboardInterrupt and SystemExit are not failures.
    """

    @wraps(job)
    def run(cfg: DictConfig) -> object:
        hydra = HydraConfig.get()
        path = Path(hydra.runtime.output_dir) / FAILED
        path.unlink(missing_ok=True)
        try:
            return job(cfg)
        except Exception as error:
            cause, message = root_cause(error)
            single = hydra.mode != RunMode.MULTIRUN
            if single and isinstance(cause, ConfigError) and _is_unused(path.parent):
                _remove_folder(path.parent)
            elif not isinstance(cause, BusyError):  # then the folder is another process's
                _write(path, cfg, type(cause).__name__, message)
            if single:
                raise
            ours = isinstance(cause, RegrowError) and os.environ.get("HYDRA_FULL_ERROR") != "1"
            _log.error("this job failed: %s", message, exc_info=None if ours else error)
            return Failed(message)

    return run


def _is_unused(folder: Path) -> bool:
    """Whether a folder has only what Hydra and the lock of a job write before it starts."""
    return folder != Path.cwd() and {item.name for item in folder.iterdir()} <= _BEFORE_A_START


def _remove_folder(folder: Path) -> None:
    """Remove an unused folder, and those between it and the current one that are empty then."""
    shutil.rmtree(folder)
    with suppress(OSError):  # the first that is not empty
        os.removedirs(os.path.relpath(folder.parent))


def _write(path: Path, cfg: DictConfig, error: str, message: str) -> None:
    """Write failed.json; if that fails, only log it, so that the first error stays visible."""
    hydra = HydraConfig.get()
    settings: Any = OmegaConf.to_container(cfg, resolve=False)  # one may be unreadable
    seed = settings.get("seed")
    content = {
        "recipe": str(hydra.runtime.choices["recipe"]),
        "overrides": override_strings(hydra.overrides.task),
        "seed": seed if isinstance(seed, int) else str(seed),
        "error": error,
        "message": message,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        write_json(path, content)
    except StateError as failure:
        _log.error("failed.json was not written: %s", failure)
