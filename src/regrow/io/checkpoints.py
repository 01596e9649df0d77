# SPDX-License-Identifier: MIT
"""Read a checkpoint and verify its checksums."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from regrow.utils.errors import StateError, one_line

KEY = "regrow_channels"  # key of the channel cut in a checkpoint


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain values, and verify its checksums."""
    check_checksums(path)
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes cause any error in torch and pickle
        reason = one_line(error).partition(". ")[0] or type(error).__name__
        raise StateError(
            f"{path} cannot be read as a checkpoint of tensors and plain values: {reason}"
        ) from error
    return loaded


def check_checksums(path: object, old: bool = True) -> bool:
    """Check a checkpoint file against the checksums in it, which `torch.load` ignores.

    Paths that are not files (folders of sharded checkpoints, URLs) are not checked. `old` accepts
    PyTorch's format before 1.6, which has no checksums. Returns whether there were any.
    """
    if path is None or not Path(str(path)).is_file():
        return False
    checked = False
    try:
        checked = zipfile.is_zipfile(str(path))
        if not checked:
            reason = None if old else "it has no end"
        else:
            with zipfile.ZipFile(str(path)) as archive:
                bad = archive.testzip()
            reason = None if bad is None else f"the checksum of {bad} is wrong"
    except Exception as error:  # a damaged directory causes any error in zipfile
        reason = str(error)
    if reason is not None:
        raise StateError(
            f"{path} is damaged ({reason}): resume from an earlier checkpoint, or remove it"
        )
    return checked
