# SPDX-License-Identifier: MIT
"""IDX, pickle, archives, downloads."""

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


_UNSIGNED_BYTE = 8


_TIMEOUT = 60.0  # seconds without a byte


def content(path: Path) -> bytes:
    """What a file holds, unpacked when its name ends in .gz."""
    if path.suffix == ".gz":
        with gzip.open(path) as stream:
            return stream.read()
    return path.read_bytes()


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes as a tensor.

    Four bytes (0, 0, type, number of dimensions), each dimension as a big-endian 32-bit number,
    then the values.

    Args:
        path: Plain, or packed with gzip.

    Returns:
        uint8, of the shape that the file states.

    Raises:
        ValueError: When the bytes are no such file, or are fewer or more than it states.
    """
    data = content(path)
    if len(data) < 4 or data[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise ValueError(
            f"{path} is no IDX file of unsigned bytes (it starts with {data[:4].hex(' ')}): "
            "delete it, or write data.root=DIR for a folder with whole files"
        )
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    if len(data) != start + math.prod(shape):
        raise ValueError(
            f"{path} states shape {shape}, {math.prod(shape)} bytes, but holds "
            f"{len(data) - start}: delete it, or write data.root=DIR for a folder with whole files"
        )
    values = np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(values.copy())  # bytes are read-only, tensors are not


def download(address: str, path: Path, sha256: str, *, packed: bool = False) -> None:
    """Fetches a file, and keeps it only when it holds what is expected.

    The check is of the unpacked content, since the same content can be packed in many ways. The
    file is written aside and renamed: `path` never holds half a file.

    Args:
        address: http(s) address.
        path: Where to keep it; its folder is made.
        sha256: Of the unpacked content, in hexadecimal.
        packed: The sum is of the file as it is fetched, instead.

    Raises:
        OSError: When the address cannot be reached, or the content is another.
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
            found = sha256_of(aside) if packed else hashlib.sha256(content(aside)).hexdigest()
        except (OSError, EOFError, ValueError) as error:  # what a broken .gz raises
            found = f"nothing readable ({error})"
        if found != sha256:
            raise OSError(
                f"{address} gave another file than expected (sha256 {found}, not {sha256}); "
                "nothing was kept: try again, or fetch the file by other means into a folder "
                "and write data.root=DIR"
            )
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


# How NumPy's arrays say they are made again: without importing a private module by name.
_REMAKE_ARRAY = np.empty(0).__reduce__()[0]


def _to_bytes(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into the protocols of Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _REMAKE_ARRAY,  # before NumPy 2
    ("numpy._core.multiarray", "_reconstruct"): _REMAKE_ARRAY,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _to_bytes,
}


class _Numbers(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def read_pickle(path: Path) -> Any:
    """What a pickle of arrays and plain values holds; strings of Python 2 come as bytes.

    A pickle is a program, and an untrusted one can do anything. Here it can make numbers, strings,
    containers of them and NumPy arrays, and call nothing else.

    Raises:
        DataError: When the file is no whole pickle, or asks for anything else.
    """
    with path.open("rb") as file:
        try:
            return _Numbers(file, encoding="bytes").load()
        except OSError:
            raise
        except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
            raise DataError(
                f"{path} is no whole pickle of arrays ({error}): delete it and fetch it again"
            ) from error
