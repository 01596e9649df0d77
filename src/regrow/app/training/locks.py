# SPDX-License-Identifier: MIT
"""File locks between jobs, and the rank of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from regrow.utils.errors import BusyError
from regrow.utils.logging import info


def on_rank_zero() -> bool:
    """Whether this process has local rank 0 or is the only one."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock the folder of a run.

    Raises:
        BusyError: If another process has locked it.
    """
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise BusyError(
            f"another process is running this job in {folder}: wait for it, or choose "
            "another folder with hydra.run.dir=..."
        ) from error


@contextmanager
def wait_for(path: Path, waiting_for: str) -> Iterator[None]:
    """Acquire a lock, and log if it has to wait."""
    lock = FileLock(path)
    try:
        acquired = lock.acquire(timeout=1)
    except Timeout:
        info(f"waiting for {waiting_for}")
        acquired = lock.acquire()
    with acquired:
        yield
