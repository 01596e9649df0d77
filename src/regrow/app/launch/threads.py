# SPDX-License-Identifier: MIT
"""CPU threads per job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from regrow.utils.errors import ConfigError

AUTO = "auto"


def cores() -> int:
    """How many cores this process may use: a cluster gives a job fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of(
    given: Any, launcher: Mapping[str, Any], sweeper: Mapping[str, Any], available: int
) -> int | None:
    """CPU threads of one job.

    Args:
        given: A number, "auto", or None, which leaves torch's own choice alone.
        launcher: Hydra's settings of it: how many jobs run side by side.
        sweeper: Likewise: Optuna starts only so many at once.
        available: Cores that this process may use.

    Raises:
        ConfigError: For what is neither, or where nothing says how many jobs there are.

    Example:
        >>> threads_of("auto", {"_target_": "x.JoblibLauncher", "n_jobs": 2}, {}, 8)
        4
    """
    if given == AUTO:
        beside = _side_by_side(launcher, sweeper, available)
        return launcher.get("cpus_per_task") or max(1, available // beside)
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and given > 0):
        return given
    raise ConfigError(
        f"threads must be a whole number of at least 1, auto or null, got {given!r}: write "
        "threads=1, or threads=auto to share the cores among the jobs side by side"
    )


def _side_by_side(launcher: Mapping[str, Any], sweeper: Mapping[str, Any], available: int) -> int:
    kind = str(launcher["_target_"]).rpartition(".")[2]
    if kind == "JoblibLauncher":
        given = int(launcher["n_jobs"])
        jobs = given if given > 0 else available + 1 + given  # joblib: -1 is one job a core
        batch = sweeper.get("n_jobs")
        return max(1, min(jobs, batch or jobs))
    if kind == "LocalLauncher" and launcher.get("cpus_per_task") is None:
        raise ConfigError(
            "threads=auto cannot know how many jobs run side by side, submitit_local starts all: "
            "write hydra.launcher.cpus_per_task=1, or threads=1"
        )
    return 1  # one after another, or on a node of its own
