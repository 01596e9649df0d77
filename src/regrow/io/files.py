# SPDX-License-Identifier: MIT
"""Atomic writes, JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from regrow.utils.errors import ConfigError, StateError, disk_error, write_error


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes beside the file, then renames: a reader sees the old file or the new one.

    Args:
        path: Where it goes; its folder is made.
        write: Called with a binary file.

    Raises:
        StateError: If it cannot be written; what was there before is whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o666 & ~_umask())  # mkstemp's are the owner's alone
            os.replace(aside, path)
        except BaseException:
            os.unlink(aside)
            raise
    except Exception as error:
        refused = disk_error(error)  # torch.save speaks of something else
        if refused is None:
            raise
        raise write_error(path, refused) from error


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all; NaN and Inf are refused, as JSON has none."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        StateError: If the file is no JSON, naming it.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise StateError(f"{path} is damaged ({error}): remove it and run again") from error


@contextmanager
def temporary_beside(path: Path, suffix: str) -> Iterator[Path]:
    """A place to write beside the path, which takes its place if nothing is raised."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: write the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    with folder as name:
        file = Path(name) / f"model{suffix}"
        try:
            yield file
            with file.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(file, path)
        except OSError as error:
            raise write_error(path, error) from error
