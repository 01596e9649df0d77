# SPDX-License-Identifier: MIT
"""Downloads, archives, IDX files and pickles."""

from __future__ import annotations

import errno
import gzip
import hashlib
import math
import os
import pickle
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regrow.utils.errors import DataError


def compute_sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, name: str, folder: Path) -> None:
    """Unpack the folder `name` of a tar archive to `folder / name`, atomically.

    A folder that another process has unpacked meanwhile is kept.

    Raises:
        DataError: If the archive is damaged, contains unsafe paths or has no folder `name`.
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
            raise DataError(f"{archive} has no folder {name}: delete it and fetch it again")
        try:
            (Path(aside) / name).rename(folder / name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


_UNSIGNED_BYTE = 8  # type code of IDX
_TIMEOUT = 60.0  # seconds without data


def content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if its name ends in .gz."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzipped, as a uint8 tensor.

    Format: four bytes (0, 0, type, number of dimensions), each dimension as a big-endian 32-bit
    number, then the values.

    Raises:
        ValueError: If the file has another format or size.
    """
    data = content(path)
    if len(data) < 4 or data[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes (it starts with {data[:4].hex(' ')}): "
            "delete it, or write data.root=DIR for a folder with complete files"
        )
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    if len(data) != start + math.prod(shape):
        raise ValueError(
            f"{path} states shape {shape}, {math.prod(shape)} bytes, but has "
            f"{len(data) - start}: delete it, or write data.root=DIR for a complete folder"
        )
    values = np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(values.copy())  # a writable copy


def download(address: str, path: Path, sha256: str, *, packed: bool = False) -> None:
    """Download a file, verify it, and move it to `path` atomically.

    Args:
        address: http(s) address.
        path: Destination; its folder is created.
        sha256: Checksum of the decompressed content, in hexadecimal.
        packed: The checksum is of the downloaded file instead.

    Raises:
        OSError: If the download fails or the checksum differs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    aside = Path(name)
    try:
        with (
            os.fdopen(handle, "wb") as target,
            urllib.request.urlopen(address, timeout=_TIMEOUT) as source,
        ):
            shutil.copyfileobj(source, target)
        try:
            digest = compute_sha256(aside) if packed else hashlib.sha256(content(aside)).hexdigest()
        except (OSError, EOFError, ValueError) as error:  # raised by a broken .gz
            digest = f"nothing readable ({error})"
        if digest != sha256:
            raise OSError(
                f"{address} returned another file than expected (sha256 {digest}, not {sha256}); "
                "nothing was kept: try again, or fetch the file by other means into a folder "
                "and write data.root=DIR"
            )
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


# NumPy's reconstruction function, without importing a private module by name
_REMAKE_ARRAY = np.empty(0).__reduce__()[0]


def _to_bytes(text: str, encoding: str) -> bytes:
    """Decode the way Python 3 writes bytes in the pickle protocols of Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it requests the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _REMAKE_ARRAY,  # before NumPy 2
    ("numpy._core.multiarray", "_reconstruct"): _REMAKE_ARRAY,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _to_bytes,
}


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it requests {module}.{name}")
        return _ALLOWED[module, name]


def read_pickle(path: Path) -> Any:
    """Read a pickle of NumPy arrays and builtin values; strings of Python 2 become bytes.

    Anything else in the pickle, which could run arbitrary code, raises.

    Raises:
        DataError: If the file is damaged or contains other objects.
    """
    with path.open("rb") as file:
        try:
            return _SafeUnpickler(file, encoding="bytes").load()
        except OSError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise DataError(
                f"{path} is not a complete pickle of arrays ({error}): delete it and fetch it again"
            ) from error
