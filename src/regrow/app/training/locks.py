# SPDX-License-Identifier: MIT
"""File locks between jobs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from regrow.utils.errors import BusyError
from regrow.utils.logging import info


def on_rank_zero() -> bool:
    """Whether this process is the first of those that train together, or the only one."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keeps a run's folder to one process.

    Raises:
        BusyError: If another one is running the same job.
    """
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise BusyError(
            f"another process is running this job in {folder}: wait for it, or give "
            "hydra.run.dir=... for another folder"
        ) from error


@contextmanager
def wait_for(path: Path, waiting_for: str) -> Iterator[None]:
    """Holds a lock, and says so when it has to wait."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        info(f"waiting for {waiting_for}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
