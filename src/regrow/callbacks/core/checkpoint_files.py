# SPDX-License-Identifier: MIT
"""Read checkpoints of pruning callbacks and of loaders; write checkpoint files atomically."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from regrow.io.checkpoints import check_checksums
from regrow.io.integrity import verify_digest
from regrow.masks.masks import check_weights_masked
from regrow.utils.errors import StateError, write_error
from regrow.utils.lightning_classes import lightning_classes, pl


def check_format(state: Mapping[str, Any], known: int, name: str) -> None:
    """Check the format version of a saved state."""
    if state.get("format") != known:
        raise StateError(
            f"the checkpoint's {name} has format {state.get('format')}, this version reads format "
            f"{known}: load the weights into the model and start a fit without ckpt_path"
        )


def require_state(checkpoint: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The state of a pruning callback in a checkpoint."""
    states: Mapping[str, Any] = checkpoint.get("callbacks") or {}
    if key not in states:
        raise StateError(
            f"the checkpoint has no masks of {key} (it has state of "
            f"{', '.join(map(repr, states)) or 'no callback'}): to prune a network that was "
            "trained without it, load the weights into the model and call fit without ckpt_path"
        )
    state: Mapping[str, Any] = states[key]
    return state


def check_trained_with(
    callback: pl.Callback, trainer: pl.Trainer, checkpoint: Mapping[str, Any]
) -> None:
    """Check that a fit resumes from a checkpoint of a fit with the same callback."""
    if trainer.state.fn == "fit" and callback.state_key not in (checkpoint.get("callbacks") or {}):
        raise StateError(
            f"the checkpoint was trained without {type(callback).__name__}: load the weights into "
            "the model and call fit without ckpt_path"
        )


def check_masked_state(
    checkpoint: Mapping[str, Any], key: str, path: object
) -> Mapping[str, Any] | None:
    """The state of a pruning callback, if any, checked against checksums and weights."""
    intact = check_checksums(path)
    state: Mapping[str, Any] | None = (checkpoint.get("callbacks") or {}).get(key)
    if state and state["pruner"] is not None:
        saved = state["pruner"] if intact else verify_digest(state["pruner"])
        check_weights_masked(saved["masks"], checkpoint.get("state_dict") or {})
    return state


def restore_loaders(trainer: pl.Trainer) -> None:
    """Restore the positions of stateful training loaders that Lightning drops.

    It creates the loaders before it restores them if a learning-rate schedule asks for
    `estimated_stepping_batches` (Lightning issue 20550). Called when training starts.
    """
    loop = trainer.fit_loop
    if loop.restarting and loop._combined_loader_states_to_load and loop._data_fetcher is not None:
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)


def restart_loaders(trainer: pl.Trainer) -> None:
    """Create new iterators of the training loaders where the resumed fit begins an epoch.

    An uninterrupted fit creates them then. A resumed one uses an iterator that was created before
    any callback could restore the random state, and iterators of a `DataLoader` draw a seed.
    """
    loop = trainer.fit_loop
    if not loop.restarting:
        loop._resuming_from_checkpoint = False  # Lightning creates it, after the hooks of the epoch
        return
    epochs = loop.epoch_loop
    saved_by_last_batch = (
        epochs.restarted_on_train_batch_end and epochs.batch_progress.is_last_batch
    )
    if saved_by_last_batch and loop._data_fetcher is not None:
        iter(loop._data_fetcher)


def save_atomic(trainer: pl.Trainer, path: str, save: Callable[[str], None]) -> None:
    """Write a local file beside its place and rename it: readers see the old or the new file.

    Call it on every rank. The folder of a sharded checkpoint takes two renames, between which the
    old one is `PATH.old`. Lightning moves a checkpoint from the system's temporary folder, which
    across file systems is a copy that a kill can cut short.
    """
    plain = lightning_classes("plugins.TorchCheckpointIO")
    if type(trainer.strategy.checkpoint_io) not in plain or "://" in path:
        save(path)
        return
    part = Path(f"{path}.part")
    try:
        if trainer.is_global_zero and part.is_dir():  # of a killed run
            _remove(part)
        save(str(part))
        if trainer.is_global_zero:
            _replace(part, Path(path))
    except BaseException as error:
        with suppress(OSError):
            if trainer.is_global_zero or not part.is_dir():  # ranks share a folder
                _remove(part)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def _replace(new: Path, path: Path) -> None:
    """Move a file or folder to where another may be."""
    if not new.is_dir() and not path.is_dir():
        os.replace(new, path)
        return
    old = Path(f"{path}.old")
    _remove(old)
    if path.exists():
        os.replace(path, old)
    os.replace(new, path)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
