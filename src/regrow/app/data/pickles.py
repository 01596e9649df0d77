# SPDX-License-Identifier: MIT
"""Pickles that hold numbers: read without letting the file call anything else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from regrow.errors import DataError

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
