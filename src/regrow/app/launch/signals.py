# SPDX-License-Identifier: MIT
"""Handle SIGTERM and the death of the parent process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_watching = threading.Event()


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


def exit_with_parent(parent: int) -> None:
    """Kill this process soon after its parent was killed.

    Otherwise it would lock its folder against a restart, and start the next job in the queue.
    """
    if not _watching.is_set():
        _watching.set()
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
