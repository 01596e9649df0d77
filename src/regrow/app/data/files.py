# SPDX-License-Identifier: MIT
"""IDX files (the format of MNIST and its kin), and downloads that are verified or refused."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import shutil
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regrow.app.data.archives import sha256_of

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
