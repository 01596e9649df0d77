# SPDX-License-Identifier: MIT
"""Archives that are unpacked whole or not at all, and never outside their folder."""

from __future__ import annotations

import errno
import gzip
import hashlib
import tarfile
import tempfile
import zlib
from pathlib import Path

from regrow.errors import DataError


def sha256_of(path: Path) -> str:
    """The file's sha256 in hexadecimal, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, name: str, folder: Path) -> None:
    """Unpacks the archive's folder `name` to `folder / name`.

    It is unpacked aside and renamed. Where another process was faster, its folder stays.

    Args:
        archive: A tar file, packed or not.
        name: The folder in it.
        folder: Where it goes.

    Raises:
        DataError: When the archive is damaged, reaches outside its folder, or holds no `name`.
    """
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(aside, filter="data")  # no links or paths that lead outside
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"{archive} cannot be unpacked ({error}): delete it and fetch it again"
            ) from error
        if not (Path(aside) / name).is_dir():
            raise DataError(f"{archive} holds no folder {name}: delete it and fetch it again")
        try:
            (Path(aside) / name).rename(folder / name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
