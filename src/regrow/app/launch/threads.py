# SPDX-License-Identifier: MIT
"""CPU threads of each job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from regrow.utils.errors import ConfigError


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
