# SPDX-License-Identifier: MIT
"""Atomic checkpoint files, state format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins import TorchCheckpointIO

from regrow.utils.errors import StateError, write_error


def check_format(state: Mapping[str, Any], known: int, name: str) -> None:
    """Refuses the state of a callback that another version wrote.

    Raises:
        StateError: Naming both formats, and what to do.
    """
    if state.get("format") != known:
        raise StateError(
            f"the checkpoint's {name} has format {state.get('format')}, this version reads format "
            f"{known}: load the weights into the model and start a fit without ckpt_path"
        )


def save_atomic(trainer: pl.Trainer, path: str, save: Callable[[str], None]) -> None:
    """Saves beside a file of this machine and renames: who reads it sees the old or the new one.

    Lightning moves a checkpoint over from the system's temporary folder, which on another file
    system is a copy that a kill cuts short.

    Args:
        trainer: Whose checkpoint it is; called on every rank.
        path: Where it goes.
        save: Writes to the path it is given.

    Raises:
        StateError: Where it cannot be written; what was there before is whole.
    """
    if type(trainer.strategy.checkpoint_io) is not TorchCheckpointIO or "://" in path:
        save(path)
        return
    part = Path(f"{path}.part")
    try:
        save(str(part))
        if trainer.is_global_zero:
            os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise
