# SPDX-License-Identifier: MIT
"""Atomic writes, JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from regrow.utils.errors import ConfigError, StateError, disk_error, write_error


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file, then rename it: readers see the old file or the new one.

    `write` is called with a binary file. The folder is created; after an error an earlier file is
    unchanged.
    """
    path = _regular_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            with temporary.open("xb") as file:  # with the permissions that the umask gives
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except Exception as error:
        cause = disk_error(error)  # torch.save raises another error
        if cause is None:
            raise
        raise write_error(path, cause) from error


def _regular_file(path: Path) -> Path:
    """Return what a path links to; raise for what a file must not replace."""
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device or pipe"
        raise ConfigError(f"{path} is a {kind}: write the name of a file")
    return path


def check_folder(what: str, folder: Path) -> None:
    """Check that a folder exists or can be made; what this makes for that is removed."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise ConfigError(
            f"{what}={folder} cannot be a folder ({error.strerror}): write another one"
        ) from error
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
    if not writable:
        raise ConfigError(f"{what}={folder} cannot be written to: write another one")


def write_text(path: Path, text: str) -> None:
    """Write text atomically, in UTF-8."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; raise for NaN and Inf, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise a StateError if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise StateError(f"{path} is damaged ({error}): remove it and run again") from error


@contextmanager
def temporary_beside(path: Path, suffix: str) -> Iterator[Path]:
    """Yield a temporary file beside the path, which replaces it if nothing is raised."""
    path = _regular_file(path)
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
