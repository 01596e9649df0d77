# SPDX-License-Identifier: MIT
"""A progress bar on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on stderr while the block runs; nothing if that is no terminal.

    Yields a function that counts one of `total` steps and describes the next.
    """
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task, done = progress.add_task("", total=total), -1

        def advance(text: str) -> None:
            nonlocal done
            done += 1
            progress.update(task, description=text, completed=done)

        yield advance
