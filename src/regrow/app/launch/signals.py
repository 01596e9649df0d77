# SPDX-License-Identifier: MIT
"""SIGTERM, orphaned workers."""

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
    """Lets SIGTERM end the command as Ctrl-C does: through every `finally`.

    Without this the processes of a launcher would outlive it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_with_parent(parent: int) -> None:
    """Ends this process soon after the one that started it is gone, killed beyond any `finally`.

    Its job goes on from its last checkpoint when it is started again. Otherwise it would keep its
    folder from that start, and take the next job from the queue.

    Args:
        parent: The number of the process that started this one.
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
