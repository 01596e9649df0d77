# SPDX-License-Identifier: MIT
"""Read a checkpoint, verify its checksums."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from regrow.utils.errors import StateError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint file, read with `weights_only=True` and compared with its checksums.

    Raises:
        StateError: If it is damaged, or holds more than tensors and plain values.
    """
    check_checksums(path)
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever damaged bytes lead torch and pickle into
        raise StateError(
            f"{path} cannot be read as a checkpoint of tensors and plain values: {error}"
        ) from error
    return loaded


def check_checksums(path: object, old: bool = True) -> None:
    """Reads a checkpoint file once more and compares it with the checksums in it.

    `torch.load` does not: most flipped bits load as other numbers. What is no file (folders of
    sharded checkpoints, addresses) is left alone.

    Args:
        path: The file.
        old: Whether it may be of PyTorch's format before 1.6, which has no checksums.

    Raises:
        StateError: Naming the file and the first part of it that is damaged.
    """
    if path is None or not Path(str(path)).is_file():
        return
    try:
        if not zipfile.is_zipfile(str(path)):
            reason = None if old else "it has no end"
        else:
            with zipfile.ZipFile(str(path)) as archive:
                bad = archive.testzip()
            reason = None if bad is None else f"the checksum of {bad} is wrong"
    except Exception as error:  # whatever a damaged directory leads zipfile into
        reason = str(error)
    if reason is not None:
        raise StateError(
            f"{path} is damaged ({reason}): go on from an earlier checkpoint, or remove it"
        )


KEY = "regrow_channels"  # where a checkpoint holds its plan
