# SPDX-License-Identifier: MIT
"""File locks between jobs; the rank, the parent and the signals of this process."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from regrow.utils.errors import BusyError
from regrow.utils.logging import info


def on_rank_zero() -> bool:
    """Whether this process has local rank 0 or is the only one."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


@contextmanager
def exclusive(
    folder: Path,
    what: str = "job",
    instead: str = "choose another folder with hydra.run.dir=...",
) -> Iterator[None]:
    """Lock the folder of a job or a sweep; `BusyError` if another process has locked it."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise BusyError(
            f"another process is running this {what} in {folder}: wait for it, or {instead}"
        ) from error


@contextmanager
def wait_for(path: Path) -> Iterator[None]:
    """Acquire the lock of a dense baseline, and log if it has to wait."""
    lock = FileLock(path)
    try:
        acquired = lock.acquire(timeout=1)
    except Timeout:
        info("waiting for another job to train the dense baseline")
        acquired = lock.acquire()
    with acquired:
        yield


@contextmanager
def handling(handler: Callable[[int, FrameType | None], object], *numbers: int) -> Iterator[None]:
    """Handle signals in a block; only the main thread may, in others nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@functools.cache
def exit_with_parent(parent: int) -> None:
    """Exit soon after the process `parent` has ended, even if it was killed.

    Otherwise this one would lock its folder against a restart, and start the next job in the queue.
    """
    child = os.getppid() == parent

    def is_alive() -> bool:
        if child:  # a killed parent keeps its number until it was waited for
            return os.getppid() == parent
        try:
            os.kill(parent, 0)
        except OSError:
            return False
        return True

    def watch() -> None:
        while is_alive():
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
